# make demo   create the environment, install, recover a planted dictionary
# make test   create the environment, install, lint, type-check and test
# CONSTRAINTS=FILE points pip at a constraints file (continuous integration pins a CPU build of torch)
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
BIN := $(VENV)/bin
export PYTHONHASHSEED := 0

.PHONY: install demo test lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('Python >= 3.11 is needed, this is ' + sys.version.split()[0] + '; set PYTHON=...' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	touch $@

demo: install
	$(BIN)/sae-recovery verify --n 128 --d 42 --s 3 --method ba --p 0.03 --neurons 512 --steps 6000 --seed 0 --out demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint
	$(BIN)/pytest

clean:
	rm -rf $(VENV) demo build dist
