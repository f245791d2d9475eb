# Everything runs in .venv, made on first use with the Python below.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# --no-compile: byte-compiling every module takes as long as installing it, and Python
# compiles what is really imported the first time it is.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
.NOTPARALLEL:
.PHONY: help demo test style nightly bench constraints clean

help:
	@echo "make demo         train a small model on this machine and say something with it"
	@echo "make test         the tests"
	@echo "make style        ruff, pyright and the direction of imports"
	@echo "make nightly      the slow tests, then all tests on every other Python found"
	@echo "make bench        the benchmarks, as tables"
	@echo "make constraints  resolve the versions of constraints.txt afresh, and print them"
	@echo "make clean        remove the environments and caches; runs/ stays"
	@echo "PYTHON=python3.12 names the Python that makes $(VENV)."

demo: $(VENV)/.core
	@$(BIN)/lmx train experiments/quickstart.gin

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -q

style: $(VENV)/.dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports

# pytest exits with 5 where nothing is marked nightly.
nightly: $(VENV)/.dev
	@$(BIN)/python -m pytest -q -m nightly || [ $$? = 5 ]
	@for version in $(filter-out $(call version,$(BIN)/python),$(VERSIONS)); do \
	  python=$$(echo "$(FOUND)" | tr ' ' '\n' | grep "python$$version$$") || \
	    { echo "No Python $$version on this machine: not tested on it."; continue; }; \
	  echo "Testing on Python $$version"; \
	  $(MAKE) --no-print-directory test VENV=.venv-$$version PYTHON=$$python || exit 1; \
	done

bench: $(VENV)/.core
	@for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; echo; done

constraints:
	@$(PYTHON) .ci/constraints.py $(FOUND)

clean:
	@rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache
	@rm -rf .import_linter_cache
	@find lmx tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The interpreters that run: a name on PATH may be a pyenv shim of one not chosen.
VERSIONS := 3.11 3.12 3.13
version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PYENV = $${PYENV_ROOT:-$$HOME/.pyenv}/versions
FOUND = $(shell for v in $(VERSIONS); do \
	for p in "$$(command -v python$$v)" $(PYENV)/$$v.*/bin/python$$v; do \
	"$$p" -c '' 2>/dev/null && echo "$$p" && break; done; done)

# What is installed stands in a stamp; `.unfinished` marks an interrupted install.
$(VENV)/.core: WHAT = .
$(VENV)/.dev: WHAT = .[dev]
$(VENV)/.core $(VENV)/.dev: pyproject.toml constraints.txt
	@if [ -e $(VENV)/.unfinished ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; \
	  then rm -rf $(VENV); fi
	@[ -d $(VENV) ] || $(PYTHON) -c "$$CHECK" $(PYTHON) || [ $$? = 1 ] && \
	  [ -d $(VENV) ] || command -v $(PYTHON) >/dev/null
	@true
