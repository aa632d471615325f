"""Puts the helpers of tests/model on the path: tiny networks."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))  # tiny_models.py
torch.set_num_threads(1)  # on a busy machine two threads wait for each other, ten times as long as they work
