# Everything a contributor or CI runs is a target here; nothing is said twice.
#   make demo     find a better few-step sampler for the MNIST network that ships, about five minutes on two cores
#   make test     formatting, lint, types, layers, documentation and tests: what CI runs
#   make bench    the benchmarks behind every figure in the README (long)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= runs/demo

.PHONY: help demo test check lint types layers docs pytest slow bench format figures clean

help:
	@sed -n '2,4p' Makefile | sed 's/^#   //'

# One stamp for the library and one for the tools: repeated calls cost nothing, a changed pyproject reinstalls.
# The constraints hold torch to the one pinned version, so that no dependency brings another.
$(VENV)/.library: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.tools: $(VENV)/.library
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.library
	$(BIN)/fewstep optimize mnist --nfe 4 --minutes 4 --out $(OUT)

test: check pytest

check: lint types layers docs

lint: $(VENV)/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.tools
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(VENV)/.tools
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pytest: $(VENV)/.tools
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8

slow: $(VENV)/.tools
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 -m slow

# Each prints the figures that the documentation quotes; the quality phases resume where they were stopped.
bench: $(VENV)/.tools
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.network
	$(BIN)/python -m benchmarks.study busy
	$(BIN)/python -m benchmarks.study kills
	$(BIN)/python -m benchmarks.study evaluation
	for phase in analytic screen optimise final report; do $(BIN)/python -m benchmarks.quality $$phase || exit 1; done

figures: $(VENV)/.tools
	$(BIN)/python docs/figures.py

format: $(VENV)/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .hypothesis
