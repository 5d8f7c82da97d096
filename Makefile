# make demo: trains and tests PLOT on the embedded dataset. make demo-photo: on photographs, Caltech-101's in DATA.
# make docs: the documentation as a site, in output/site.
# make test: lint, types and the tests of all but the slow ones. make test-all: every test.
# Each target creates .venv if it is missing; this needs Python 3.10+, pip and make. CONTRIBUTING.md has the details.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
# Containers often set PYTHONDONTWRITEBYTECODE. Each start would then compile all of PyTorch, which takes 15 seconds.
COMPILE := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -c
PYTEST = TIMEFORMAT='make $@: the tests took %lR'; time $(BIN)/python -m pytest -n 2

.PHONY: demo demo-photo test test-all lint format docs clean

demo: .venv/installed
	bash scripts/plot/main.sh symbols 16

demo-photo: .venv/installed
	$(BIN)/python -m datasets.prepare caltech101
	CFG=photo SEEDS=1 bash scripts/plot/main.sh caltech101 16

test: lint .venv/ray
	@$(PYTEST) -m "not slow"

test-all: lint .venv/ray
	@$(PYTEST) -m ""

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . output/site
	@echo "Built: output/site/index.html"

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml
	@echo "Installing into .venv; PyTorch is large, this takes a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@$(COMPILE) "import predict, sweep, pytest, experiments.compare, experiments.pictures.visualize, torch.utils.tensorboard"
	@touch $@

# Ray is an extra: if it cannot be installed, its tests are skipped.
.venv/ray: .venv/installed
	-$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[ray]' && $(COMPILE) "import ray"
	@touch $@

clean:
	rm -rf .venv output
