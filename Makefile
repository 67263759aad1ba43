# Every target makes the environment it needs; nothing has to be installed first but Python 3.11 or 3.12.
PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= dev
JOBS   ?= 2
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed.$(EXTRAS)

.PHONY: help install demo test test-gpu check format bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## the environment, from the pinned constraints

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else \
	  f"Python 3.11 or 3.12 is needed, {sys.version.split()[0]} was found. Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing the pinned packages (a few minutes on the first run) ..."
	$(BIN)/python -m pip install --progress-bar on -q -c constraints.txt -e '.[$(EXTRAS)]'
	@$(if $(findstring gpu,$(EXTRAS)),$(BIN)/python -c 'import torch; torch.version.cuda or print( \
	  f"torch {torch.__version__} is here, a build without CUDA, and was kept. For a GPU: make clean, then", \
	  "make install EXTRAS=$(EXTRAS) without PIP_EXTRA_INDEX_URL")')
	@touch $@

demo: $(STAMP)  ## a miner, mock validators and a mock gateway on loopback; results in demo-output/
	$(BIN)/python -m scripts.demo

test: $(STAMP)  ## the whole test suite, in JOBS=2 processes
	@# One thread each: several of torch's in several processes wait for each other. Numba, which rembg
	@# loads, would compile what nothing calls, and set torch's number of threads to that of the cores.
	@# Compiled Python is kept, even where the environment says otherwise: every process would compile
	@# the tests and the programs again.
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-gpu: $(STAMP)  ## the tests that need a CUDA device, by name; fails where there is none
	$(BIN)/python -m pytest -m cuda -v

check: $(STAMP)  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## stage times of the preset at hand
	$(BIN)/python -m scripts.benchmark pipeline

clean:  ## remove the environment and every output
	rm -rf $(VENV) demo-output train-embedded build *.egg-info
