# Every target works from a fresh clone: the environment and the embedded data are made on first use.
#   make PYTHON=python3.12 test        another Python
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo     a CPU build of torch (Linux; PyPI's is for CUDA)
#   make ARGS="--profile gpu" train    further arguments of the command
#   make JOBS=4 test                   tests in four processes
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=
# Files of tests that run at once, one thread each.
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb) $(wildcard notebooks/solutions/*.ipynb))
NBVAL = --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-current-env

.PHONY: help demo test oldest lint lab app notebooks site prepare train smoke results unseen ablate figures bench clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{printf "  make %-9s %s\n", $$1, $$2}'

# torch first and on its own: any later request for "torch>=2.13" then keeps the build that was chosen here.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; choose another: make PYTHON=python3.12 ...")'
	@echo "making the environment in $(VENV) (1.6 GB with a CPU build of torch; about two minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

prepare: $(VENV)/.ready ## fetch the embedded data (about 100 MB, once)
	@$(PY) -m medm2g_core prepare

demo: prepare ## run the quickstart notebook; the result is outputs/demo/index.html
	$(PY) -m medm2g_core demo $(ARGS)

lint: $(VENV)/.ready ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

test: prepare lint ## lint, all tests, and all notebooks against their stored outputs
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile tests $(if $(NOTEBOOKS),$(NBVAL) $(NOTEBOOKS)) --durations=15 $(ARGS)

oldest: prepare ## the tests (not the slow ones) with the oldest supported versions, in outputs/oldest
	$(PY) tests/oldest.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) -m "not slow" $(ARGS)

lab: prepare ## open the notebooks in JupyterLab
	$(PY) -m jupyter lab --notebook-dir . notebooks/00_quickstart.ipynb $(ARGS)

app: prepare ## the explorer in the browser, for several users at once (ARGS="--port 8866")
	$(PY) -m medm2g_core.explore.app $(ARGS)

notebooks: prepare ## execute all notebooks anew in place, after new weights (resumable; ARGS="05" for one)
	$(PY) -m medm2g_core.show.execute_all $(ARGS)

site: $(VENV)/.ready ## pages, executed notebooks and docstrings as a web site in outputs/site/html (needs npm once)
	@$(PY) -m pip install --quiet --disable-pip-version-check -e ".[site]"
	$(PY) -m medm2g_core.show.site

train: prepare ## train all stages with the CPU profile (ARGS="--profile gpu" for another)
	$(PY) -m medm2g_core train --profile cpu $(ARGS)

smoke: prepare ## the whole training in about a minute, no quality to expect
	$(PY) -m medm2g_core train --profile smoke --out outputs/smoke $(ARGS)

results: prepare ## measure what is not measured yet, write tables and contact sheets in results/
	$(PY) -m medm2g_core evaluate $(ARGS)
	$(PY) -m medm2g_core.show.task_sheets

unseen: prepare ## leave one person out: three short trainings (most of an hour; resumable)
	$(PY) -m medm2g_core evaluate --sections unseen $(ARGS)

ablate: prepare ## component effects over three seeds (hours; resumable)
	$(PY) -m medm2g_core ablate $(ARGS)

figures: $(VENV)/.ready ## the paper's figures and tables, as measured here, in outputs/figures
	@$(PY) -m medm2g_core.show.paper_figures $(ARGS)

bench: prepare ## speed and memory
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "$$script"; $(PY) $$script; done

clean: ## remove outputs and tool caches; the environment and the data cache stay
	rm -rf outputs build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
