"""The endpoint on its own Ray, until stdin closes: `serve_process.py PORT JSON_OF_SETTINGS`."""

import json
import sys

import ray
from ray import serve

from refadgen.serving.app import build
from refadgen.serving.run import start

if __name__ == "__main__":
    port, settings = int(sys.argv[1]), json.loads(sys.argv[2])
    ray.init(address="local", num_cpus=8, include_dashboard=True)
    start(build(settings), port)
    print("ready", ray.nodes()[0]["MetricsExportPort"], flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()
