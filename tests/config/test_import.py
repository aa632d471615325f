"""`import refadgen.config` is quick: settings are refused before anything large is loaded."""

import json
import subprocess
import sys

_CODE = """
import json, sys, time
started = time.process_time()
import refadgen.config
import refadgen.config.identity, refadgen.config.paths
seconds = time.process_time() - started
large = sorted({"pyarrow", "torch", "ray", "numpy", "transformers", "diffusers"} & set(sys.modules))
print(json.dumps([seconds, large]))
"""


def test_the_settings_load_nothing_large() -> None:
    run = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True, timeout=60)
    seconds, large = json.loads(run.stdout)
    assert large == []
    # Time of this process alone: 0.05 s on two cores. The bound leaves room for a slow machine.
    assert seconds < 0.3
