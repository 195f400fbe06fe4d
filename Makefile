PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SWEEP := sweeps/activation-depth

.DEFAULT_GOAL := help
.PHONY: help setup run test check format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

setup: $(READY) ## build the environment in .venv

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: setup ## run the main job on the embedded digits: one net, then a grid with its report
	@$(BIN)/gradexp run configs/quickstart.yaml
	@$(BIN)/gradexp sweep configs/activation_depth.yaml
	@$(BIN)/gradexp report $(SWEEP) --html $(SWEEP)/report.html --figures $(SWEEP)/figures
	@echo "page: $(SWEEP)/report.html"
	@echo "picture: $(SWEEP)/figures/gradients.png"

test: setup ## run all tests
	$(BIN)/python -m pytest

check: setup ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: setup ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and everything made from the code
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
