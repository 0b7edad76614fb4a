# Everything runs in .venv, made here on the first call and brought up to date when pyproject.toml changes.
#   make PYTHON=python3.12 compare     another interpreter
#   make WORKERS=4 test                more tests at a time (0: one process, which pdb needs)
#   make ARGS='-k gqa -x' test         more words for pytest; for benchmarks with `make compare`
# pip reads its usual settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf): choose another build of torch there.

PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
             $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
ARGS    ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check
# One worker has one thread (tests/conftest.py); a group's tests share a worker, and with it what they loaded.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --timeout 300

install = @echo "installing $(1) into $(VENV): some minutes the first time" >&2 && $(PIP) install --quiet --editable $(1)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help compare gallery docs test test-browser test-slow check format dev clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

compare: $(VENV)/.run ## all architectures side by side: parameters, KV cache, FLOPs, tokens/s
	@$(BIN)/python -m benchmarks $(ARGS)

gallery: $(VENV)/.gallery ## write gallery/index.html: diagrams, charts and what-if of all architectures
	@$(BIN)/python -m benchmarks gallery --out gallery $(ARGS)

docs: $(VENV)/.gallery ## write what is generated in docs/: text on blocks, drawings, measured tables, schema
	@$(BIN)/python -m docs.tools
	@$(BIN)/python -m tests.walks

test: $(VENV)/.test ## the tests: offline, on the CPU
	$(PYTEST) $(ARGS)

test-browser: $(VENV)/.test ## the tests of the gallery's page, in a Chromium that is on the PATH
	$(PYTEST) -m 'browser and not slow' $(ARGS)

test-slow: $(VENV)/.test ## the tests marked slow
	$(PYTEST) -m 'slow and not gpu and not network' $(ARGS)

check: $(VENV)/.dev ## lint, format, types, imports between rooms and docstrings, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/docstrings.py

format: $(VENV)/.dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dev: $(VENV)/.dev $(VENV)/.test ## everything for working on the code, with the commit hooks
	$(BIN)/pre-commit install

clean: ## remove .venv and every cache
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: .python the environment, then what was installed into it. Serial, also under -j: pip does not share.
.NOTPARALLEL:

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "zoo needs Python 3.11 or newer, and none of python3, python3.11, 3.12, 3.13 is." \
	  "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit( \
	  "zoo needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another: make PYTHON=/path/to/python3.11" % v[:2])'
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make virtual environments (Debian and Ubuntu: install python3-venv)." >&2; exit 2; }
	@touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.python
	$(call install,.)
	@touch $@

$(VENV)/.gallery: pyproject.toml $(VENV)/.python
	$(call install,'.[gallery]')
	@touch $@ $(VENV)/.run

$(VENV)/.test: pyproject.toml $(VENV)/.python
	$(call install,'.[test]')
	@touch $@ $(VENV)/.run $(VENV)/.gallery

$(VENV)/.dev: pyproject.toml $(VENV)/.python
	$(call install,'.[dev]')
	@touch $@ $(VENV)/.run
