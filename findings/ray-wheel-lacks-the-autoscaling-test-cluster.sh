#!/usr/bin/env bash
# ray==2.60.0 (wheel), Python 3.11, seen 2026-11-28.
#
# `ray.cluster_utils.AutoscalingCluster`, with which a job is tried on a cluster that grows and shrinks on one machine,
# cannot be made from the published wheel: it reads `fake_multi_node/example.yaml`, which the wheel leaves out. The plain
# `Cluster` of the same module works.
#
# Output seen:
#     AutoscalingCluster: FileNotFoundError: …/ray/autoscaler/_private/fake_multi_node/example.yaml
#     Cluster: made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cat > "$folder/show.py" <<'PYTHON'
from ray.cluster_utils import AutoscalingCluster, Cluster

worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1}
try:
    AutoscalingCluster(head_resources={"CPU": 0}, worker_node_types={"cpu": worker})
    found = "made"
except FileNotFoundError as error:
    found = f"FileNotFoundError: …{error.filename[error.filename.index('/ray/') :]}"
print(f"AutoscalingCluster: {found}")
Cluster()  # without nodes: nothing is started
print("Cluster: made")
assert found.startswith("FileNotFoundError"), "the behaviour has changed"
PYTHON
cd "$folder"
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" show.py 2>"$folder/log" || { cat "$folder/log"; exit 1; }
