# Everything a fresh machine needs. Two commands matter: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# uv, in an environment of its own, installs everything else; a uv that is already there is used.
UV := $(shell command -v uv || echo .uv/bin/uv)
export SAM2_BUILD_CUDA = 0

.PHONY: setup demo dataset-demo evaluate-demo serve test test-long gpu-proof lint cluster-lint structure mini mask-network clean

setup: $(VENV)/.installed

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

# Compiled now, once: every job starts several Pythons, and not each machine keeps what it compiles at import.
$(VENV)/.installed: pyproject.toml constraints.txt | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt \
		--editable '.[studio,ocr,onnx,heic,delta,iceberg,quantized,provenance,evaluate,dev]'
	touch $@

demo: setup
	$(BIN)/python jobs/generate_catalog.py catalogs/demo.parquet --output out/demo

dataset-demo: setup
	$(BIN)/python jobs/build_dataset.py catalogs/ads.parquet --output out/dataset triplet.rows_per_file=8

# The built-in model on held-out products beside text alone and pasted pixels: out/evaluate-demo/evaluation.html.
evaluate-demo: setup
	rm -rf out/evaluate-demo
	$(BIN)/python -m refadgen.evaluation.demo --output out/evaluate-demo/runs
	$(BIN)/python jobs/evaluate.py ours=out/evaluate-demo/runs/ours text-only=out/evaluate-demo/runs/text-only \
		pixel-paste=out/evaluate-demo/runs/pixel-paste --output out/evaluate-demo

PORT ?= 8000
serve: setup
	cluster/local/serve.sh --port $(PORT)

# The quick tests side by side, each file on one of four workers at most; then those that bring a Ray of their own.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m 'not slow and not long'
	$(BIN)/python -m pytest -m 'slow and not long'

test-long: setup
	$(BIN)/python -m pytest -m long --timeout 1200

# What only a GPU can show, in one file: correctness, speed, the engine, training, other networks. About half an hour.
gpu-proof: setup
	$(BIN)/python tests/gpu/proof.py --output out/gpu-proof.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The files of cluster/, without a cluster. CRDS=FOLDER takes KubeRay's own definitions besides.
CRDS ?=
cluster-lint: setup
	$(BIN)/python cluster/lint.py $(if $(CRDS),--crds $(CRDS))

# Figures about the code: rooms, imports, lengths, types, comments. `--root DIR` measures another checkout.
structure: setup
	$(BIN)/python tests/benchmarks/structure.py

# The built-in model from nothing, into $(WORK)/joint/model: many hours; stopped, renders and the U-Nets go on where
# they were, the autoencoder starts anew. See refadgen/mini/README.md for what was made by it.
WORK ?= work
mini: setup
	$(BIN)/python -m refadgen.studio.build_triplets --output $(WORK)/renders --num 1020 --first-seed 30000 \
		--dressings 12 --shard-seeds 10
	$(BIN)/python -m refadgen.mini.untrained --data $(WORK)/renders --output $(WORK)/untrained --bf16
	$(BIN)/python jobs/train.py --config mini --base $(WORK)/untrained --data $(WORK)/renders --output $(WORK)/joint \
		data.cache=$(WORK)/cache

# The mask network and its verdict from nothing, into $(WORK)/masks: hours on a CPU, minutes with DEVICE=cuda and a few
# cores. Stopped, renders and training go on where they were. See refadgen/segmentation/weights/README.md.
DEVICE ?= cpu
mask-network: setup
	$(BIN)/python -m refadgen.mask_training.renders --output $(WORK)/masks/renders --num 2500
	$(BIN)/python -m refadgen.mask_training.renders --output $(WORK)/masks/renders-held-out --num 300 --held-out
	$(BIN)/python -m refadgen.mask_training.train --output $(WORK)/masks/network --renders $(WORK)/masks/renders \
		--held-out $(WORK)/masks/renders-held-out --device $(DEVICE)
	$(BIN)/python -m refadgen.mask_training.calibrate --weights $(WORK)/masks/network/mask_network.safetensors \
		--renders $(WORK)/masks/renders-held-out --output $(WORK)/masks/verdict.json

clean:
	rm -rf $(VENV) .uv out
