# Everything a developer types. A fresh machine needs python3.11 (or newer) with pip, make and git; `make` lists the targets.

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
CODE := daemons tests scripts $(wildcard demo bench)
# Three to two processors: the tests wait for half of their time.
PYTEST_ARGS ?= -n 3 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help venv test system fuzz lint format types demo mutants docs packages lock clean

help:
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

venv: $(VENV)/dev.stamp ## the development environment in .venv, every package pinned by its hash

# Two stamps, so that `make demo` fetches only what the programs themselves need. pip may be the
# system's (--python, since 22.3) or, where there is none, the one that ensurepip brings.
PIP := $(PYTHON) scripts/pip_into.py $(VENV)

$(VENV)/run.stamp: requirements/run.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo 'python 3.11 or newer is needed: install it, or say where it is: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PIP) install --quiet --require-hashes -r requirements/run.lock
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.lock $(VENV)/run.stamp
	$(PIP) install --quiet --require-hashes -r requirements/dev.lock
	@touch $@

$(VENV)/system.stamp: requirements/system.lock $(VENV)/dev.stamp
	$(PIP) install --quiet --require-hashes -r requirements/system.lock
	@touch $@

$(VENV)/fuzz.stamp: requirements/fuzz.lock $(VENV)/dev.stamp
	$(PIP) install --quiet --require-hashes -r requirements/fuzz.lock
	@touch $@

test: $(VENV)/dev.stamp ## unit, simulator, integration and acceptance tests (system tests: .ci/run)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

system: $(VENV)/system.stamp ## tests that need root, iproute2 and chromium
	$(BIN)/python -m pytest tests/system

fuzz: $(VENV)/fuzz.stamp ## what strangers can send, guided by coverage; SECONDS=30 for each target, TARGETS="http wire" for some
	PYTHONPATH=.:daemons $(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),30) --json .fuzz/table.json $(TARGETS)

lint: $(VENV)/dev.stamp ## ruff, and its formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/dev.stamp ## let ruff format and mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/system.stamp ## mypy --strict, over the tests that drive a browser too
	$(BIN)/mypy $(CODE)

demo: $(VENV)/run.stamp ## watch a coordinator and two workers find each other and work; KEEP=1 leaves them running
	@KEEP="$(KEEP)" $(BIN)/python -m demo

mutants: $(VENV)/dev.stamp ## plant known bugs in a copy and see each one caught
	$(BIN)/python -m tests.mutants $(MUTANTS)

docs: $(VENV)/dev.stamp ## draw the generated parts of docs/ anew
	$(BIN)/python scripts/protocol_document.py
	$(BIN)/python scripts/security_document.py
	$(BIN)/python scripts/definition_schema.py
	$(BIN)/python scripts/openapi.py
	$(BIN)/python -m bench draw

packages: $(VENV)/run.stamp ## the Debian packages, into dist/; ARCH="amd64 arm64" for other processors than this one
	@$(PYTHON) scripts/packages.py --venv $(VENV) $(addprefix --arch=,$(ARCH))

lock: ## resolve requirements/*.lock anew from pyproject.toml
	$(PYTHON) scripts/lock.py

clean: ## remove what the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build demo-output .fuzz daemons/*.egg-info
	find daemons tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
