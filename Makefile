# commentree: `make train` on a fresh machine shows it working; `make test` tests it.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# A Python that is named has a virtual environment of its own.
VENV   ?= .venv$(if $(filter-out file,$(origin PYTHON)),-$(notdir $(PYTHON)))
BIN    := $(VENV)/bin
RUN    ?= runs/demo

.PHONY: help train check test slow fuzz lint format bench device modes feed aot settings site notebooks clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -ts:

train: $(VENV)/.installed  ## install, train the tiny model on generated trees, show that ancestors help
	$(BIN)/commentree train --gin_file=runs/demo.gin --gin.MODEL_DIR='"$(RUN)"'

# Files in the order of their names: by default those of few tests come last, and the
# longest tests are in such files.
BY_FILE := --dist=loadfile --no-loadscope-reorder

# Of the folders whose tests mostly compute without compiling, what takes less than a
# second each, and a few steps of the trainer with a stub for a model.
CHECK := tests/test_*.py tests/tasks tests/launch/settings tests/models/decoding \
  tests/models/heads $(addprefix tests/training/,checkpointing cluster optim reports trackers \
  test_config.py test_partitioning.py test_step.py test_train.py)

check: $(VENV)/.installed-test  ## the quick tests, in less than two minutes
	$(BIN)/python -m pytest -m "not slow and not hosts and not long" -n 2 $(BY_FILE) $(CHECK)

# Hosts that wait for each other must not be kept waiting: of their tests, which mostly
# wait, two run at a time, beside nothing else.
test: $(VENV)/.installed-test  ## the default test suite
	$(BIN)/python -m pytest -m "not slow and not hosts" -n auto --maxprocesses=4 $(BY_FILE)
	$(BIN)/python -m pytest -m "not slow and hosts" -n 2 $(BY_FILE)

# What runs for long is worth XLA's full effort; see tests/conftest.py.
slow: $(VENV)/.installed-test  ## the tests that take minutes each
	XLA_FLAGS= $(BIN)/python -m pytest -m slow

fuzz: $(VENV)/.installed-fuzz  ## hostile inputs for all that reads files; FUZZ_FLAGS='--runs=100000'
	$(BIN)/python -m commentree.tests.fuzz $(FUZZ_FLAGS)

lint: $(VENV)/.installed-test  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p .mypy_cache/path && ln -sfn ../.. .mypy_cache/path/commentree
	cd .mypy_cache/path && $(abspath $(BIN))/mypy --config-file=../../pyproject.toml \
	  $(addprefix -p commentree.,models tasks training launch tests)

format: $(VENV)/.installed-test  ## format in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed  ## throughput against padded rows and concatenated threads
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m commentree.launch.benchmarks.bench $(BENCH_FLAGS)

device: $(VENV)/.installed  ## train step and inference on the devices here, against products of matrices
	$(BIN)/python -m commentree.launch.benchmarks.bench_device $(DEVICE_FLAGS)

modes: $(VENV)/.installed  ## comments a second of what infer does with the model of `make train`
	$(BIN)/python -m commentree.launch.benchmarks.bench_modes --model_dir=$(RUN) $(MODES_FLAGS)

feed: $(VENV)/.installed  ## how fast one core masks, packs and tokenises, against what a TPU chip takes
	$(BIN)/python -m commentree.launch.benchmarks.bench_input $(FEED_FLAGS)

aot: $(VENV)/.installed-test  ## docs/aot.md: every size on TPU slices, by the TPU compiler; goes on where it stopped
	$(BIN)/python -m commentree.launch.compiling.aot_table $(AOT_FLAGS)

settings: $(VENV)/.installed  ## docs/settings.md, from the classes of settings
	$(BIN)/python -m commentree.launch.settings.settings_page

# The package under its name, for the reference of Python; no more of it, for links to
# the whole folder would lead back into build/. Not --quiet: mkdocs counts no warning that
# it does not print.
PACKAGED := $(filter-out setup.py,$(wildcard *.py)) launch models tasks training

site: $(VENV)/.installed-docs  ## the documentation as pages, in build/site; needs no network
	mkdir -p build/path/commentree
	for name in $(PACKAGED); do ln -sfn ../../../$$name build/path/commentree/$$name; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site
	@echo "build/site/index.html"

# Their outputs are not kept with the sources; runs that they leave would be continued.
notebooks: $(VENV)/.installed-notebooks  ## docs/notebooks, executed, in build/notebooks; about a minute each
	rm -rf build/notebooks
	mkdir -p build/notebooks
	export PATH="$(abspath $(BIN)):$$PATH"; for source in docs/notebooks/*.py; do \
	  target=build/notebooks/$$(basename $$source .py).ipynb; \
	  jupytext --quiet --to ipynb --output $$target $$source && \
	  jupyter-execute --inplace $$target && echo $$target || exit 1; done

clean:  ## remove the virtual environments and what tools left
	rm -rf .venv .venv-* $(VENV) build .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/.installed: setup.py launch/inference/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/.installed-notebooks: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[notebooks]'
	touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	touch $@
