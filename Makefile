# Everything a fresh machine needs. Two commands matter: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# uv, in an environment of its own, installs everything else; a uv that is already there is used.
UV := $(shell command -v uv || echo .uv/bin/uv)
export SAM2_BUILD_CUDA = 0

.PHONY: setup demo test lint clean

setup: $(VENV)/.installed

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

$(VENV)/.installed: pyproject.toml constraints.txt | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[studio,dev]'
	touch $@

demo: setup
	$(BIN)/python jobs/generate_catalog.py catalogs/demo.parquet --output out/demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .uv out
