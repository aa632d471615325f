"""Measures generated ads against the truth: held-out products and scenes, judge networks, metrics, other methods.

The truth comes from the studio, so importing the modules needs the extra `refadgen[studio]`; `metrics` and `baselines`
do not.
"""
