# All that a person types. `make demo` and `make test` set up first; nothing else is needed on a fresh machine but
# Python 3.11 or newer, with its venv module, and make.

PYTHON ?= python3
BIN := .venv/bin
# Where this is set, every process compiles all that it imports anew: some six seconds of each start of Ray.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-slow test-vllm check bench clean

setup: .venv/.complete

# Python compiles what is imported, when it is: a small part of what is installed.
.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/raystyle demo

test: setup
	$(BIN)/pytest -n 2 --dist loadfile
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "e2e and not slow" --timeout 1200 --durations 20

# What takes too long for every change.
test-slow: setup
	$(BIN)/pytest -m slow --timeout 1200

# vLLM has an environment of its own, of exactly these packages: nothing is looked up, so it is there in a few minutes.
.venv-vllm/.complete: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement constraints-vllm.txt
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

test-vllm: .venv-vllm/.complete
	.venv-vllm/bin/pytest tests/serving/test_conformance.py tests/serving/test_vllm_plugin.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

bench: setup
	$(BIN)/python bench/isolation.py
