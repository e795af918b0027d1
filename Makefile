# Two commands matter to a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## show what there is
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

$(VENV)/installed: setup.cfg setup.py pyproject.toml
	@echo "installing into $(VENV) (once; some 700 MB of numpy, faiss, hdbscan and friends)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed; say make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: install
install: $(VENV)/installed ## make .venv and install everything

.PHONY: demo
demo: $(VENV)/installed ## the main job for real, on real pictures: make demo [ARGS=--keep]
	@$(BIN)/sploot-cluster demo $(ARGS)

.PHONY: test
test: $(VENV)/installed ## the whole suite, on a real redis-server: make test [ARGS='-k merge']
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

.PHONY: check
check: $(VENV)/installed ## ruff, mypy --strict, the walls between packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: bench
bench: $(VENV)/installed ## measure side by side, minutes: make bench [ARGS=5000]
	@$(BIN)/python -m benchmarks.density $(ARGS)

.PHONY: format
format: $(VENV)/installed ## let ruff write the files as it likes them
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

.PHONY: clean
clean: ## remove what was built here, the environment included
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output
