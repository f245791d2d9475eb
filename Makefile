# Everything runs in .venv, created on first use by PYTHON (PYTHON=python3.12 to choose).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VERSIONS := 3.11 3.12 3.13
# Byte-compiling all modules takes as long as installing them; Python compiles modules when
# it first imports them, unless PYTHONDONTWRITEBYTECODE is set.
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test study processes faults soak meshes style parity plan package docs \
  wandb nightly bench constraints clean
.NOTPARALLEL:

help:
	@echo 'make demo         train a small model on this machine, and see what it learned'
	@echo 'make test         run the tests'
	@echo 'make study        train several models, and compare them'
	@echo 'make processes    train in several real processes and compare with one process'
	@echo 'make faults       inject faults into real runs (kills, full disks, lost peers)'
	@echo 'make soak         kill a run a hundred times'
	@echo 'make meshes       compare every mesh with one device'
	@echo 'make style        ruff, pyright, import order and the size budget'
	@echo 'make parity       compare with Hugging Face transformers, in .venv-parity'
	@echo 'make plan         compile a training step for TPUs, without a TPU'
	@echo 'make wandb        run the tests that need the library of Weights & Biases'
	@echo 'make package      build sdist and wheel, install the wheel and run quickstart'
	@echo 'make docs         regenerate docs/commands.md and docs/tree.md'
	@echo 'make nightly      run the slow tests, then all tests on every Python found'
	@echo 'make bench        run the benchmarks'
	@echo 'make constraints  resolve the versions of constraints.txt again and print them'
	@echo 'make clean        remove environments and caches, but not runs'

demo: $(VENV)/.core
	@$(BIN)/lmx train experiments/quickstart.gin

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile \
	  -m 'not (nightly or study or processes or faults or meshes or tpu)'

# Only files with that word are collected; the tests of a file stay on one worker. Those
# that wait for timeouts of processes have a third; long files come before short ones.
MARKED = $(BIN)/python -m pytest -q -n 2 --dist loadfile -m '$@ and not nightly' \
  $$(grep -rlw --include='test_*.py' $@ tests | sort -r)

study: $(VENV)/.dev
	@$(MARKED)

processes: $(VENV)/.dev
	@$(MARKED)

faults: $(VENV)/.dev
	@$(MARKED) -n 3 --no-loadscope-reorder

soak: $(VENV)/.dev
	@$(BIN)/python -m pytest -q -m nightly tests/faults/test_soak.py

meshes: $(VENV)/.dev
	@$(MARKED)

style: $(VENV)/.dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports
	@$(BIN)/python .ci/size.py

# transformers has an environment of its own; the two exchange files.
PEER := .venv-parity
TORCH := 2.13.0
TRANSFORMERS := 5.23.0
PEERS := $(PEER)/.torch-$(TORCH)-transformers-$(TRANSFORMERS)

parity: $(VENV)/.dev $(PEERS)
	@rm -rf build/parity; fault=0; \
	$(PEER)/bin/python -m tests.parity.peer write build/parity && \
	{ $(BIN)/python -m tests.parity.compare build/parity || fault=1; } && \
	$(PEER)/bin/python -m tests.parity.peer check build/parity && exit $$fault

# torch goes first and alone: what transformers would pull in can be gigabytes of CUDA.
$(PEERS): BIN = $(PEER)/bin
$(PEERS):
	@echo "Installing torch and transformers into $(PEER) ..."
	@rm -rf $(PEER); $(PYTHON) -m venv $(PEER) && \
	$(PIP) torch==$(TORCH) && $(PIP) transformers==$(TRANSFORMERS) && touch $@

# libtpu has a folder of its own: where it is installed, `import jax` looks for a TPU.
LIBTPU := .venv-tpu/libtpu/libtpu.so
ON_TPU = TPU_LIBRARY_PATH=$(CURDIR)/$(LIBTPU) $(BIN)/python -m pytest -q tests/plan tests/cli/test_plan.py

plan: $(VENV)/.dev $(LIBTPU)
	@$(ON_TPU) -m 'tpu and not nightly'

$(LIBTPU): $(VENV)/.dev
	@echo "Installing libtpu into .venv-tpu ..."
	@$(PIP) --no-deps --upgrade --target .venv-tpu "$$($(BIN)/python -c "$$PINNED")" && touch $@

define PINNED
from importlib.metadata import requires
print(next(r.split(";")[0] for r in requires("jax") if r.startswith("libtpu")))
endef
export PINNED

package:
	@PYTHON=$(PYTHON) .ci/package

docs: $(VENV)/.dev
	@$(BIN)/python .ci/docs.py

bench: $(VENV)/.core
	@set -e; for file in benchmarks/*.py; do $(BIN)/python $$file; done

# Prints a working interpreter for each version; pyenv's shims may not work.
FOUND = for v in $(VERSIONS); do \
  for p in python$$v "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$v.*/bin/python$$v; do \
    if "$$p" -c 'import ensurepip' 2>/dev/null; then echo "$$p"; break; fi; \
  done; done

# The library of Weights & Biases, which is as large as all else, has a folder of its own.
WANDB := 0.31.0
WITH_WANDB := .venv-wandb/.wandb-$(WANDB)

$(WITH_WANDB): $(VENV)/.dev
	@echo "Installing wandb into .venv-wandb ..."
	@rm -rf .venv-wandb; $(PIP) --constraint constraints.txt --target .venv-wandb \
	  wandb==$(WANDB) && touch $@

wandb: $(VENV)/.dev $(WITH_WANDB)
	@PYTHONPATH=.venv-wandb $(BIN)/python -m pytest -q -m wandb tests/run/test_wandb.py

# pytest exits with 5 where it finds no test.
nightly: $(VENV)/.dev $(LIBTPU) wandb
	@$(BIN)/python -m pytest -q -m 'nightly and not tpu and not wandb' || [ $$? -eq 5 ]
	@$(ON_TPU) -m 'tpu and nightly'
	@set -e; for python in $$($(FOUND)); do version=$${python##*python}; \
	  [ -e $(BIN)/python$$version ] || $(MAKE) --no-print-directory test \
	    VENV=.venv-$$version PYTHON=$$python; done

constraints:
	@$(PYTHON) .ci/constraints.py $$($(FOUND))

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find lmx tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# A stamp file records what is installed. `.unfinished` exists while an install runs, so
# that an interrupted install is removed.
$(VENV)/.core: WANTED = .
$(VENV)/.dev: WANTED = .[dev]
$(VENV)/.core $(VENV)/.dev: pyproject.toml constraints.txt
	@[ ! -e $(VENV)/.unfinished ] && $(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  rm -rf $(VENV)
	@[ -d $(VENV) ] || $(PYTHON) -c "$$CHECK" || { \
	  echo 'Choose another Python, as in: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; }
	@echo "Installing lmx and its dependencies into $(VENV) ..."
	@set -e; start=$$(date +%s); mkdir -p $(VENV); touch $(VENV)/.unfinished; \
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV); \
	$(PIP) --constraint constraints.txt --editable '$(WANTED)' || { \
	  echo 'Installing failed. Run the same command to try again.' >&2; exit 1; }; \
	rm $(VENV)/.unfinished; touch $(VENV)/.core $@; \
	echo "... done in $$(($$(date +%s) - start)) s"

# Must parse on old Pythons, too.
define CHECK
import sys
here = "%d.%d" % sys.version_info[:2]
if here not in "$(VERSIONS)".split():
    sys.exit("lmx needs one of Python $(VERSIONS), and $(PYTHON) is " + here + ".")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("$(PYTHON) cannot create virtual environments: apt install python" + here + "-venv")
endef
export CHECK
