# make demo: the whole method on a drawn sample set · make test: the tests · make check: style, types, floors
# The environment is made on first use; PYTHON=python3.12 make demo chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check

demo: $(READY)
	@test -f runs/sample/looks.json || $(BIN)/sccam data sample runs/sample
	$(BIN)/sccam train runs/sample -c demo --out runs/demo --resume

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sccam tests
	$(BIN)/lint-imports

$(READY): pyproject.toml
	@echo "making .venv with $(PYTHON): torch and the rest are downloaded once, this takes minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --editable '.[crf,dev]'
	@touch $@
