#!/usr/bin/env bash
# torch-fidelity==0.4.0 with pytest==9.1.1, Python 3.11, seen 2026-11-28.
#
# torch-fidelity's wheel installs its own tests as the top-level package `tests`. A project whose folder `tests/` has no
# __init__.py (pytest's --import-mode=importlib) runs all the same, since pytest enters its modules by hand; but a process
# that such a test spawns imports the module by name, finds torch-fidelity's package first, and ends with exit code 1.
#
# Output seen:
#     without torch-fidelity: 1 passed
#     with torch-fidelity: No module named 'tests.shop'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip pytest==9.1.1
mkdir -p "$folder/project/tests/shop"
cat > "$folder/project/tests/shop/test_spawn.py" <<'PYTHON'
import multiprocessing


def work() -> None:
    pass


def test_spawn() -> None:
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
PYTHON
cd "$folder/project"
run() { "$folder/venv/bin/python" -m pytest --import-mode=importlib -p no:cacheprovider tests 2>&1; }
run > "$folder/before" || { cat "$folder/before"; exit 1; }
echo "without torch-fidelity: $(grep -o '1 passed' "$folder/before")"
pip --no-deps torch-fidelity==0.4.0
if run > "$folder/after"; then echo "the behaviour has changed"; exit 1; fi
echo "with torch-fidelity: $(grep -o "No module named 'tests.shop'" "$folder/after" | head -1)"
