# make demo: the main job on the embedded default.  make test: lint, types and all tests.
# Both make .venv first if it is not there; all they need is Python 3.10+, pip and make.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode of what is used is written once, at the installation: where PYTHONDONTWRITEBYTECODE is set, as in many
# containers, each start of a program would compile all of PyTorch anew, which takes some 15 seconds.
COMPILE := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -c

.PHONY: demo test lint format clean

demo: .venv/installed
	bash scripts/plot/main.sh symbols 16

test: lint .venv/ray
	$(BIN)/python -m pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: setup.py
	@echo "Installing into .venv; PyTorch is large, this takes a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@$(COMPILE) "import predict, sweep, pytest, experiments.compare, experiments.pictures.visualize, torch.utils.tensorboard"
	@touch $@

# Ray is an extra: where it does not install, its tests are skipped.
.venv/ray: .venv/installed
	-$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[ray]' && $(COMPILE) "import ray"
	@touch $@

clean:
	rm -rf .venv output
