# What one does with sqlqueue, a word each. `make` alone lists them.
#
# On a machine with nothing but Python 3 and make, every target first makes what it needs: a virtual
# environment in .venv, and in it the packages from PyPI that setup.cfg names.

.DEFAULT_GOAL := help
.NOTPARALLEL: # with -j, two pips would install into one environment at once
.PHONY: help setup demo test test-all check lint type imports audit docs bench bench-all soak clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is passed on: make demo ARGS="--count 6 --every 0.2s"
ARGS ?=

# One stamp for each set of packages, younger than setup.cfg as long as nothing has to be installed.
# The larger sets bring the smaller ones.
RUNTIME := $(VENV)/.ready-runtime
TEST := $(VENV)/.ready-test
DEV := $(VENV)/.ready-dev
BENCH := $(VENV)/.ready-bench
# Apart from the others: it brings thirty packages, which are nobody's business here.
AUDIT := $(VENV)/audit/.ready

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo '  ARGS="..." is passed on by demo, test, test-all, bench, bench-all and soak; PYTHON=python3.12 chooses a Python.'

setup: $(DEV) ## make .venv with all that development needs

demo: $(RUNTIME) ## run the demo: a producer and workers stamping files, until ctrl-c
	@exec $(BIN)/sqlqueue demo $(ARGS)

# Most tests wait for processes they have started, so more of them run at once than there are cores.
test: $(TEST) ## run the fast tests
	$(BIN)/pytest -n 4 -m "not slow and not debian" $(ARGS)

# pytest ends with 5 when it has selected nothing. That is no failure, but no proof either.
# Two files of tests at once: most of them wait for processes. Their servers are made once a file.
test-all: $(TEST) ## run the tests that are slow or need Debian packages
	@$(BIN)/pytest -n 2 --dist loadfile -m "slow or debian" $(ARGS); code=$$?; \
	if [ $$code -eq 5 ]; then \
		echo "make test-all: NOTHING WAS TESTED, no test is marked slow or debian" >&2; exit 0; \
	fi; exit $$code

check: lint type imports test ## lint, type, imports and test

lint: $(DEV) ## look for mistakes and for code that is not formatted (ruff)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

type: $(DEV) ## check the types (mypy --strict)
	$(BIN)/mypy

imports: $(DEV) ## check who imports whom (import-linter)
	$(BIN)/lint-imports

audit: $(DEV) $(AUDIT) ## ask pip-audit for known vulnerabilities in what is installed
	$(VENV)/audit/bin/python tools/audit.py $(VENV)

docs: $(RUNTIME) ## write docs/commands.md and the pictures and tables of docs/lifecycle.md anew
	$(BIN)/python tools/commands_page.py
	$(BIN)/python tools/lifecycle_page.py

bench: $(BENCH) ## compare with SQLite itself and with other queues: a quick look, in a few minutes
	$(BIN)/python -m tests.benchmarks --rounds 1 --scale 0.15 $(ARGS)

bench-all: $(BENCH) ## the same in full, and keep what was found: twenty minutes on a machine that is quiet
	$(BIN)/python -m tests.benchmarks --rounds 3 --write $(ARGS)

soak: $(TEST) ## prove the promises with their full figures: kills, power cuts, load; an hour and a half
	$(BIN)/python -m tests.proofs $(ARGS)

clean: ## remove caches and builds; .venv, jobs/, logs/ and databases stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(RUNTIME): setup.cfg
	@$(PYTHON) tools/bootstrap.py $(VENV) --editable .
	@touch $(RUNTIME)

$(TEST): setup.cfg
	@$(PYTHON) tools/bootstrap.py $(VENV) --editable '.[test]'
	@touch $(RUNTIME) $(TEST)

$(DEV): setup.cfg
	@$(PYTHON) tools/bootstrap.py $(VENV) --editable '.[dev]'
	@touch $(RUNTIME) $(TEST) $(DEV)

$(BENCH): setup.cfg
	@$(PYTHON) tools/bootstrap.py $(VENV) --editable '.[bench]'
	@touch $(RUNTIME) $(TEST) $(BENCH)

$(AUDIT):
	@$(PYTHON) tools/bootstrap.py $(VENV)/audit 'pip-audit>=2.9,<3'
	@touch $(AUDIT)
