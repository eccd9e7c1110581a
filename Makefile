# make demo: the whole method on a drawn sample set · make test: the tests · make check: style, types, floors
# make docs: the documentation as a site, in site/
# make bench-tables: the tables and pictures of speed, from benchmarks/results
# make faults: every fault that docs/guarantees.md counts, in numbers, which takes long · make fuzz: mutated files for the readers
# The environment is made on first use; PYTHON=python3.12 make demo chooses another interpreter. With LOCK=requirements.lock
# it holds the very files that the tests ran with (Linux, x86-64, Python 3.11). JOBS=4 make test: tests in four processes.

PYTHON ?= python3
LOCK ?=
JOBS ?= 2
SECONDS_OF_FUZZ ?= 240
BIN := .venv/bin
READY := .venv/ready
READY_DEV := .venv/ready-dev
READY_BENCH := .venv/ready-bench
READY_DOCS := .venv/ready-docs
BINDINGS := .venv/tensorrt-bindings
# apart from the environment: it pins an older numpy, and its brush module needs none of its dependencies
LABEL_STUDIO := .venv/label-studio-sdk

.PHONY: demo test check docs bench-tables faults fuzz

demo: $(READY)
	@test -f runs/sample/looks.json || $(BIN)/sccam data sample runs/sample
	$(BIN)/sccam train runs/sample -c demo --out runs/demo --resume
	$(BIN)/sccam export runs/demo
	@test -f runs/unseen/looks.json || $(BIN)/sccam data sample runs/unseen --images 20 --seed 1
	$(BIN)/sccam infer runs/demo runs/unseen/images --out runs/unseen_masks --save mask --save overlay --overwrite
	$(BIN)/sccam report runs/demo

test: $(READY_DEV)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

check: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sccam tests
	$(BIN)/lint-imports

docs: $(READY_DOCS)
	$(BIN)/python docs/settings_page.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

faults: $(READY_DEV)
	FAULTS=full FAULTS_JSON=benchmarks/results/faults.json \
		$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile tests/faults; \
		status=$$?; $(BIN)/python benchmarks/faults.py && exit $$status

fuzz: $(READY_DEV)
	$(BIN)/python -m tests.faults.fuzz --seconds $(SECONDS_OF_FUZZ) --target all --out runs/fuzz

bench-tables: $(READY_BENCH)
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/tables.py

$(READY): pyproject.toml $(wildcard sccam/runtime/native/*.h sccam/runtime/native/*.cpp)
	@echo "making .venv with $(PYTHON): torch and the rest are downloaded once, this takes minutes"
	@$(PYTHON) -m venv .venv
	@if test -n '$(LOCK)'; then $(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCK) && \
		$(BIN)/python -m pip install --quiet --no-deps --editable .; \
	else $(BIN)/python -m pip install --quiet --editable '.[export]'; fi
	@touch $@

$(READY_DEV): $(READY)
	@test -n '$(LOCK)' || $(BIN)/python -m pip install --quiet --editable '.[bench,crf,export,scale,dev,tensorrt-check]'
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
