#!/usr/bin/env bash
# ray[data]==2.60.0, Python 3.11, seen 2026-11-27.
#
# A class given to Dataset.map_batches is not what runs: Ray Data makes an instance of a subclass of its own. In the
# actor, type(self).__name__ is `_SingleThreadedWrapper`, whatever the class is called, and __init_subclass__ of the
# class runs again for that subclass. One would expect the class's own name, which the dashboard does show. Whoever
# names a logger or a metric after type(self) names all stages alike.
#
# Output seen:
#     name in the actor: _SingleThreadedWrapper
#     __init_subclass__ ran for it, too: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[data]==2.60.0'
cat > "$folder/show.py" <<'PYTHON'
import logging
import os

os.environ["RAY_AUTH_MODE"] = "disabled"
import pyarrow as pa
import ray


class Stage:
    seen: list[str] = []

    def __init_subclass__(cls) -> None:
        Stage.seen.append(cls.__name__)


class Fetcher(Stage):
    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.table({"name": [type(self).__name__], "seen": [Stage.seen]})


ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
row = (
    ray.data.from_arrow(pa.table({"a": [1]}))
    .map_batches(Fetcher, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1))
    .take_all()[0]
)
print("name in the actor:", row["name"])
print("__init_subclass__ ran for it, too:", row["name"] in row["seen"])
assert row["name"] == "_SingleThreadedWrapper", "the behaviour has changed"
PYTHON
cd "$folder"
"$folder/venv/bin/python" show.py 2>"$folder/log" || { cat "$folder/log"; exit 1; }
