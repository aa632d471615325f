"""Training: the objective (Eq. 2), triplets as precomputed latents, and the loop that one worker runs."""
