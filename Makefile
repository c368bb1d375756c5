# Every target sets up what it needs: `make test` and `make demo` work in a fresh clone
# on a machine that has only Python >= 3.11, bash and make.
#
#   PYTHON=...       interpreter that makes the environment (default: python3, or the
#                    first newer one found if that is older than 3.11)
#   VENV=...         where the environment lives (default: .venv)
#   PYTEST_FLAGS=... DEMO_FLAGS=... BENCH_FLAGS=... DOCS_FLAGS=...
#                    passed on, e.g. BENCH_FLAGS=--quick

SHELL := bash
PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=
DEMO_FLAGS ?=
BENCH_FLAGS ?=
DOCS_FLAGS ?=

BIN := $(VENV)/bin
# The one that trains many models takes hours, the others half an hour in all.
LONGEST := benchmarks/digits_priors.py
BENCHMARKS := $(filter-out $(LONGEST),$(wildcard benchmarks/[!_]*.py)) $(LONGEST)
# A worker begins with neighbouring files, which share compiled code, and takes tests of
# another only when it has none left.
IN_PARALLEL := -n auto --dist worksteal
ON_CPU := JAX_PLATFORMS="$${JAX_PLATFORMS:-cpu}"
# A default PYTHON may be replaced by a newer interpreter, one that was asked for may not.
ifeq ($(origin PYTHON),file)
CANDIDATES := $(PYTHON) python3.12 python3.13 python3.11 python3.14
else
CANDIDATES := $(PYTHON)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test test-all demo bench docs lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

test: $(VENV)/.installed ## run the tests in float32, the numerical ones in float64 too
	$(ON_CPU) JAX_ENABLE_X64=0 $(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_FLAGS)
	$(ON_CPU) JAX_ENABLE_X64=1 $(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_FLAGS) -m '(numerics or float64) and not long' tests

test-all: PYTEST_FLAGS += --long
test-all: test ## run the long tests too: all pairs, calibrations, examples

demo: $(VENV)/.installed ## run examples/quickstart.py
	$(BIN)/python examples/quickstart.py $(DEMO_FLAGS)

bench: $(VENV)/.installed-bench ## run every benchmark, into benchmark_results/
	@set -euo pipefail; for script in $(BENCHMARKS); do \
	  echo "== $$script"; $(ON_CPU) $(BIN)/python "$$script" $(BENCH_FLAGS); \
	done

# In full, as on the site: make docs DOCS_FLAGS='-t full'.
docs: $(VENV)/.installed-docs ## build the documentation, its tutorials in their short form
	$(ON_CPU) $(BIN)/python -m sphinx -W --keep-going -j auto $(DOCS_FLAGS) docs docs/_build/html
	@$(BIN)/python docs/_check.py docs/_build/html
	@echo "documentation: file://$(CURDIR)/docs/_build/html/index.html"

lint: $(VENV)/.installed-dev ## check style, spelling and calls, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python tests/mutants.py --check

format: $(VENV)/.installed-dev ## fix style where it can be fixed by a program
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, builds and caches
	rm -rf -- "$(VENV)" build dist *.egg-info .pytest_cache .ruff_cache .coverage htmlcov \
	  docs/_build docs/tutorials
	find numpyro_kaem tests examples benchmarks -name __pycache__ -prune \
	  -exec rm -rf {} + 2>/dev/null || true

# The environment, and one stamp per set of extras: installed again when the metadata
# change. pip's output goes to $(VENV)/install.log; on the screen, one line per package.
$(VENV)/pyvenv.cfg:
	@set -euo pipefail; chosen=; \
	for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	    >/dev/null 2>&1; then chosen=$$candidate; break; fi; \
	done; \
	if [[ -z $$chosen ]]; then \
	  echo "numpyro_kaem needs Python >= 3.11 with the venv module; tried: $(CANDIDATES)." >&2; \
	  echo "Name another interpreter with: make <target> PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "== new environment $(VENV): $$("$$chosen" --version) ($$chosen)"; \
	"$$chosen" -m venv "$(VENV)"; \
	"$(BIN)/python" -m pip install -qq --upgrade pip

# $(call install,EXTRAS)
define install
	@set -euo pipefail; \
	echo "== installing numpyro_kaem[$(1)] into $(VENV)"; \
	"$(BIN)/python" -m pip install --progress-bar off -e '.[$(1)]' 2>&1 \
	  | tee "$(VENV)/install.log" \
	  | awk '/^(Collecting|Processing|Building wheels|Installing collected)/ \
	      {sub(".*/", "", $$2); print "   " $$1, $$2; fflush()}' \
	  || { tail -n 40 "$(VENV)/install.log" >&2; exit 1; }; \
	touch "$@"
endef

METADATA := setup.cfg pyproject.toml numpyro_kaem/_version.py

$(VENV)/.installed: $(METADATA) | $(VENV)/pyvenv.cfg
	$(call install,test$(,)examples)

$(VENV)/.installed-bench: $(METADATA) | $(VENV)/.installed
	$(call install,bench)

$(VENV)/.installed-docs: $(METADATA) | $(VENV)/.installed
	$(call install,docs)

$(VENV)/.installed-dev: $(METADATA) | $(VENV)/pyvenv.cfg
	$(call install,dev)

# A literal comma inside $(call ...).
, := ,
