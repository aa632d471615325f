#!/usr/bin/env bash
# Serves the endpoint on http://127.0.0.1:8000 in the foreground, with a Ray of its own: Ctrl-C ends both.
# Another port: cluster/local/serve.sh --port 8100. Settings may follow, as section.field=value:
#   cluster/local/serve.sh model.path=/models/refadgen sampling.num_inference_steps=12
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
. cluster/local/loopback.sh
# Ray Serve's replicas listen on all addresses: whoever calls them must know a token, which is made for this run.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export RAY_ADDRESS=local # not what an earlier Ray has left behind
exec python -m refadgen.serving.run "$@"
