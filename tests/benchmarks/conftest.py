"""Makes the benchmark scripts importable, for their tests and for each other."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
