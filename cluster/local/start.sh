#!/usr/bin/env bash
# Starts a Ray on this machine, on loopback, and stays in the foreground: Ctrl-C ends this Ray and no other.
# Submit jobs from another shell, in the same folder:
#   ray job submit -- python jobs/generate_catalog.py catalogs/demo.parquet
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
. cluster/local/loopback.sh
# Four logical CPUs even on two cores: on fewer, pools of one-CPU actors would wait for each other forever.
cpus=$(nproc)
exec ray start --head --block --num-cpus="$((cpus < 4 ? 4 : cpus))" \
  --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --disable-usage-stats "$@"
