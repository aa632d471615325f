"""Judges of generated ads, and held-out products and scenes with their truth."""
