"""Puts the helpers of tests/model on the path: tiny networks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))  # tiny_models.py
