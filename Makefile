# Every target installs what it needs. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The tests start hundreds of processes: where bytecode is not kept, each of them compiles everything again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test lint coverage torture bench bench-detection lock audit clean tools

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(RUNTIME) ## Make .venv with the command agentidp-analytics and the embedded engine

# Not compiled ahead: a run imports a fraction of what is installed, and compiles that much itself.
$(RUNTIME): requirements.lock pyproject.toml
	@echo "installing into $(VENV): the engine is large, this takes a minute" >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(INSTALLED): $(RUNTIME) requirements-dev.lock
	@echo "installing into $(VENV) what tests and lint need" >&2
	$(PIP) --no-compile -r requirements-dev.lock
	@touch $@

demo: install ## Serve 90 days of made-up events, with a token and the calls to make
	$(BIN)/agentidp-analytics demo

tools: ## Check (and on Debian as root: install) what only the tests need
	.ci/tools

lint: $(INSTALLED) ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Three workers for two cores: a fifth of the time is waiting for other processes.
test: tools lint ## Everything that CI checks
	$(BIN)/pytest -n 3 --dist worksteal $(PYTEST_ARGS)

coverage: tools $(INSTALLED) ## The tests again, with the lines that none of them runs; fails below the floor
	$(BIN)/pytest -n 3 --dist worksteal --cov --cov-report term $(PYTEST_ARGS)

torture: $(INSTALLED) ## kill -9 and recount for SECONDS (default 60), SEED to repeat a run
	$(BIN)/python -m tests.torture --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

bench: $(INSTALLED) ## Ratios, measured side by side
	$(BIN)/python -m bench.exporter
	$(BIN)/python -m bench.commit
	$(BIN)/python -m bench.attack
	$(BIN)/python -m bench.flatness
	$(BIN)/python -m bench.idle

bench-detection: $(INSTALLED) ## What the alerts find in made-up traces, and how often they are wrong, beside others' rules
	directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && \
	  $(BIN)/python -m bench.detection.generate --seeds $(or $(SEEDS),1-40) --out "$$directory" && \
	  $(BIN)/python -m bench.detection --traces "$$directory" --out "$$directory/alerts.csv"

COMPILE := .cache/lock/bin/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --no-emit-index-url \
  --no-emit-find-links --no-emit-trusted-host --all-build-deps
lock: ## Write requirements.lock and requirements-dev.lock anew from pyproject.toml
	$(PYTHON) -m venv .cache/lock && .cache/lock/bin/python -m pip install --quiet pip-tools
	$(COMPILE) --extra embedded --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra dev --extra embedded --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

audit: $(INSTALLED) ## Known advisories of the locked packages (asks the network)
	$(BIN)/pip-audit --requirement requirements-dev.lock --no-deps --disable-pip

clean: ## Remove everything that was made here
	rm -rf $(VENV) .coverage .cache build dist *.egg-info demo-data .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	  tests/support/oidc/node_modules
	find . -name __pycache__ -prune -exec rm -rf {} +
