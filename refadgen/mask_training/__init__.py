"""How the second opinion on masks is trained: pictures with ground truth, the network's training, its figures."""
