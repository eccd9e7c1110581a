# make demo: the whole method on a drawn sample set · make test: the tests · make check: style, types, floors
# make docs: the documentation as a site, in site/
# make bench-tables: the tables and pictures of speed, from benchmarks/results
# The environment is made on first use; PYTHON=python3.12 make demo chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
READY_DEV := .venv/ready-dev
READY_BENCH := .venv/ready-bench
READY_DOCS := .venv/ready-docs
BINDINGS := .venv/tensorrt-bindings
# apart from the environment: it pins an older numpy, and its brush module needs none of its dependencies
LABEL_STUDIO := .venv/label-studio-sdk

.PHONY: demo test check docs bench-tables

demo: $(READY)
	@test -f runs/sample/looks.json || $(BIN)/sccam data sample runs/sample
	$(BIN)/sccam train runs/sample -c demo --out runs/demo --resume
	$(BIN)/sccam export runs/demo
	@test -f runs/unseen/looks.json || $(BIN)/sccam data sample runs/unseen --images 20 --seed 1
	$(BIN)/sccam infer runs/demo runs/unseen/images --out runs/unseen_masks --save mask --save overlay --overwrite
	$(BIN)/sccam report runs/demo

test: $(READY_DEV)
	$(BIN)/python -m pytest

check: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sccam tests
	$(BIN)/lint-imports

docs: $(READY_DOCS)
	$(BIN)/python docs/settings_page.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

bench-tables: $(READY_BENCH)
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/tables.py

$(READY): pyproject.toml $(wildcard sccam/runtime/native/*.h sccam/runtime/native/*.cpp)
	@echo "making .venv with $(PYTHON): torch and the rest are downloaded once, this takes minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --editable '.[export]'
	@touch $@

$(READY_DEV): $(READY)
	@$(BIN)/python -m pip install --quiet --editable '.[bench,crf,export,dev,tensorrt-check]'
	@for version in 10.16.1.11 11.4.0.106; do $(BIN)/python -m pip install --quiet --no-deps --upgrade \
		--target $(BINDINGS)/$${version%%.*} tensorrt_cu13_bindings==$$version \
		|| echo "no TensorRT $$version bindings for this machine: their test will be skipped"; done
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(LABEL_STUDIO) label-studio-sdk==2.1.2 \
		|| echo "no label-studio-sdk for this machine: its test will be skipped"
	@touch $@

$(READY_BENCH): $(READY)
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

$(READY_DOCS): $(READY)
	@$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@
