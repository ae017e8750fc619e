# Everything a contributor runs. `make` alone lists the targets.
# The virtual environment is built on first use and again when pyproject.toml changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test test-quick mosquitto bench bench-network bench-accuracy bench-slow-agent bench-pool clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(READY) ## Build the virtual environment

$(READY): pyproject.toml
	@$(PYTHON) scripts/check_python.py
	@echo "setting up $(VENV) (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch in the same command: a later, separate install could pull another build in (docs/decisions/0003).
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" -e ".[server,pool,broker,digits,dev]"
	@touch $@

demo: $(READY) ## The main job: broker, one worker, four agents, spoken and written digits
	@$(BIN)/cutlayer demo

check: $(READY) ## Format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks scripts
	$(BIN)/lint-imports

format: $(READY) ## Put the code into its standard form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY) mosquitto ## All tests, as CI runs them
	$(BIN)/pytest

test-quick: $(READY) ## The tests that take seconds
	$(BIN)/pytest -m "not slow"

mosquitto:
	@sh scripts/install_mosquitto.sh

bench: bench-network bench-accuracy ## All benchmarks (about 40 minutes)

bench-network: $(READY) mosquitto ## Networked against in-process steps, and what the transport alone carries
	$(BIN)/python benchmarks/network.py

bench-accuracy: $(READY) ## Asynchronous int8 against synchronous fp32 and centralized, three seeds
	$(BIN)/python benchmarks/accuracy.py

bench-pool: $(READY) mosquitto ## Two workers on a core each against one on one core, and the digits' accuracy with each
	$(BIN)/python benchmarks/pool.py --seeds 2

bench-slow-agent: $(READY) mosquitto ## What an agent that is a hundred times slower costs the others
	$(BIN)/python benchmarks/slow_agent.py

clean: ## Remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
