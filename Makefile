# Two words are enough to start: `make demo` and `make test`. Both build .venv by themselves.
# Words used locally and in .ci/run alike: lint, types, unit (together: test).

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
# A further package index for torch, such as PyTorch's own of CPU-only builds (see README).
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
# One thread per worker: two pytest workers with torch's default would fight over the cores.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test lint types unit format clean-venv

help:
	@echo "make demo    install into $(VENV), segment a brain MR and show where the result is"
	@echo "make test    everything CI checks: lint, types, unit"
	@echo "make format  rewrite the code in the house style"

demo: $(VENV)/.installed
	$(BIN)/fastsam3d demo --output-dir demo-output

test: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(VENV)/.installed-dev
	$(THREADS) $(BIN)/python -m pytest -n $(JOBS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean-venv:
	rm -rf $(VENV)

# Torch comes first and alone, so that only torch is asked from the extra index.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "fastsam3d needs Python 3.11 or newer; set PYTHON=/path/to/python3.11."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
	  || { echo "This Python cannot make environments; on Debian: apt-get install python3-venv."; exit 1; }
	@echo "Installing into $(VENV); with downloads this takes a few minutes."
	$(PIP) --retries 1 --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) --editable ".[demo,hub,server,client]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[demo,hub,onnx,server,client,dicom,train,eval,dev]"
	# For its client alone (tests drive it); all that its server depends on is not needed.
	$(PIP) --no-deps monailabel
	@touch $@
