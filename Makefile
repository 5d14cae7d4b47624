# Every target sets up what it needs in .venv; after that, `. .venv/bin/activate` gives the same commands by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := runs/demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint prove world clean

help: ## say what there is
	@printf 'usage: make TARGET [PYTHON=python3.11]\n\n'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# On one thread: models this small gain little by a second one, and lose much where other work keeps the cores busy.
demo: export OMP_NUM_THREADS ?= 1
demo: $(VENV)/.run ## align a small model in a small world, offline: images, pairs, training, evaluation
	@rm -rf $(DEMO)/fit $(DEMO)/test
	@$(BIN)/synthalign world $(DEMO)/world --num-scenes 150
	@$(BIN)/synthalign fit --config configs/demo.yaml
	@$(BIN)/synthalign test --config configs/demo.yaml --config configs/demo_heldout.yaml \
		--model.init_args.adapter $(DEMO)/fit/adapter

test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.dev ## run the tests, without network or GPU, a file on each core
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

prove: $(VENV)/.dev ## measure again what the README claims, over seeds and beside a control; kill runs at random
	@$(BIN)/python benchmarks/prove.py
	@$(BIN)/python -m pytest -m prove

world: $(VENV)/.run ## train the small world's models again, from a seed
	@$(BIN)/python -m synthalign.world.train

clean: ## remove caches and builds; keeps .venv and runs/
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Without ensurepip (some Linux distributions pack it apart), pip moves into the environment by itself.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=…")'
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q pip; }

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@printf 'Installing into %s: about 2 GB, a few minutes the first time.\n' '$(VENV)'
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@
