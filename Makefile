# All that a person types. `make demo` and `make test` set up first; nothing else is needed on a fresh machine but
# Python 3.11 or newer, with its venv module, and make.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check bench clean

setup: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/raystyle demo

test: setup
	$(BIN)/pytest
	$(BIN)/pytest -m e2e --timeout 1200

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --package raystyle
	$(BIN)/mypy --strict raystyle/__init__.py raystyle/errors.py raystyle/config.py raystyle/flags.py raystyle/values.py \
		raystyle/training_arguments.py raystyle/storage.py raystyle/tokens.py raystyle/training/plan.py \
		$$(ls raystyle/corpus/*.py | grep -v prepare.py) \
		$$(ls raystyle/style/*.py | grep -v evaluate.py) raystyle/style/report/*.py raystyle/training/gate.py \
		raystyle/training/metrics.py
	$(BIN)/python docs/generate.py --check

bench: setup
	$(BIN)/python bench/isolation.py
