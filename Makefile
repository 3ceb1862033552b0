# Every target sets up what it needs; only python3 (>= 3.11), make and git are assumed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PROJECTS := pyproject.toml export/pyproject.toml runtime/pyproject.toml constraints.txt

.PHONY: setup quickstart test bindings check bench format clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# uv is used where there is one and brought into the environment where there is none.
$(STAMP): $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "frami-edge needs Python >= 3.11; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	  test -x "$$uv" || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; \
	  "$$uv" pip install --python $(BIN)/python -c constraints.txt -e ./runtime -e ./export -e . --group dev
	@touch $@

quickstart: setup  ## the main job: invert, distil, score, export, stream
	$(BIN)/frami-edge quickstart --out runs/quickstart --overwrite

test: setup  ## needs no data set, GPU or network; what is absent is skipped and named
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bindings: setup  ## TensorRT's Python bindings, against which the tests check every name we use
	$(BIN)/python tests/export/tensorrt_stub/fetch.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.peers: $(STAMP)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	  "$$uv" pip install --python $(BIN)/python -c constraints.txt --group bench
	@touch $@

bench: $(VENV)/.peers  ## ratios against named peers, measured in one run
	@failed=""; for script in benchmarks/bench_*.py; do \
	  echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; done; \
	  test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
