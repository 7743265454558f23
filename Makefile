# From a bare checkout: `make train`, `make train DATA=bars.csv`, `make test`, `make docs`; ARGS="..." adds arguments.
# The environment is .venv, built from constraints.txt (exact versions).
# `make train` starts anew each time; with DATA it goes on where it was stopped.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
WORKERS ?= auto
# A worker takes tests that stand together, so that what a file's tests share is made once.
PYTEST := -m pytest -q -n $(WORKERS) --dist worksteal -p tests.cpu_time
DATA   ?=
ARGS   ?=

.PHONY: train test test-all check docs bench clean

train: $(STAMP)
ifeq ($(DATA),)
	$(BIN)/lit-ppo walk-forward --config configs/quickstart.yaml --results results/quickstart --overwrite $(ARGS)
else
	$(BIN)/lit-ppo walk-forward --config configs/walk_forward.yaml --data.path "$(DATA)" \
		--results "results/$$(basename "$(DATA)")" --resume $(ARGS)
endif

# Compiled files are kept, whatever the shell says: two workers and their processes read each module again.
test test-all: export PYTHONDONTWRITEBYTECODE :=

test: $(STAMP)
	$(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

# Also records what the fault tests measured (benchmarks/results/reliability.json) and makes docs/reliability.md of it.
test-all: $(STAMP)
	$(BIN)/python $(PYTEST) -p tests.faults.record --cpu-budget 20 $(ARGS)
	$(BIN)/python -m benchmarks.reliability_table

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) docs
	$(MAKE) test

# The pages of docs/ and the API, as a site: build/site/index.html. A broken link is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Hours: see the head of each script. What needs a file or a rival that is not at hand says so and is left out.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.oracles
	$(BIN)/python -m benchmarks.ablation
	$(BIN)/python -m benchmarks.vs_peers
	$(BIN)/python -m benchmarks.walk_forward $(if $(DATA),--data "$(DATA)")
	$(BIN)/python -m benchmarks.long_evaluation
	$(BIN)/python -m benchmarks.scaling $(if $(DATA),--file "$(DATA)")
	$(BIN)/python -m benchmarks.memory_proofs --add
	$(BIN)/python -m benchmarks.popgym
	$(BIN)/python -m benchmarks.optimisations
	$(BIN)/python -m benchmarks.optimisations --fast_base --ablation
	$(if $(DATA),$(BIN)/python -m benchmarks.optimisations --data "$(DATA)")
	$(BIN)/python -m benchmarks.prior
	$(BIN)/python -m benchmarks.planted
	$(BIN)/python -m benchmarks.pretraining
	$(BIN)/python -m benchmarks.null_searches
	$(BIN)/python -m benchmarks.workers $(if $(DATA),--config scratch --data.path "$(DATA)" --data.fold_limit 24 --model.screen_features false,--config quickstart)
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf $(VENV)

# torch comes first and alone: it is the one package whose version decides which build of everything else fits.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "lit-ppo needs Python >= 3.11, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@
