#!/usr/bin/env bash
# Starts a Ray on this machine, on loopback, and stays in the foreground: Ctrl-C ends this Ray and no other.
# Submit jobs from another shell, in the same folder:
#   ray job submit -- python jobs/generate_catalog.py catalogs/demo.parquet
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
. cluster/local/loopback.sh
export RAY_DISABLE_IMPORT_WARNING=1
# A CPU for each core's generating actor, and three for planning and the stages that take half a CPU: with fewer
# logical CPUs pools would wait for each other forever, or leave a core idle.
cores=$(python -c 'from refadgen.config.devices import num_cores; print(num_cores())')
exec ray start --head --block --num-cpus="$((cores + 3))" \
  --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --disable-usage-stats "$@"
