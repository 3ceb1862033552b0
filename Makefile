# Every target sets up what it needs; only python3 (>= 3.11), make and git are assumed.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.ready
RUNTIME := .venv-runtime
JOBS    ?= 2
# uv where there is one; `setup` brings it into the environment where there is none.
UV       = $$(command -v uv || echo $(BIN)/uv)
PROJECTS := pyproject.toml export/pyproject.toml runtime/pyproject.toml constraints.txt

.PHONY: setup quickstart check test test-runtime bindings bench dist format clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "frami-edge needs Python >= 3.11; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x "$(UV)" || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@"$(UV)" pip install --python $(BIN)/python -c constraints.txt -e ./runtime -e ./export -e . --group dev
	@touch $@

quickstart: setup  ## the main job: invert, distil, score, export, stream
	$(BIN)/frami-edge quickstart --out runs/quickstart --overwrite

check: setup  ## what CI checks before the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=benchmarks:experiments $(BIN)/mypy benchmarks experiments

# One thread per process: the networks of the tests are tiny, and threads that wait cost minutes.
test: setup  ## needs no data set, GPU or network; what is absent is skipped and named
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

test-runtime:  ## the runtime in an environment without torch; any Python >= 3.10
	@test -x $(RUNTIME)/bin/python || $(PYTHON) -m venv $(RUNTIME)
	@$(RUNTIME)/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	@$(RUNTIME)/bin/python -m pip install --quiet -e "./runtime[audio,pretty,resample]" --group runtime/pyproject.toml:test
	OMP_NUM_THREADS=1 $(RUNTIME)/bin/python -m pytest tests/runtime $(PYTEST_ARGS)

bindings: setup  ## TensorRT's Python bindings, against which the tests check every name we use
	$(BIN)/python tests/export/tensorrt_stub/fetch.py

$(VENV)/.peers: $(STAMP)
	@"$(UV)" pip install --python $(BIN)/python -c constraints.txt --group bench
	@touch $@

bench: $(VENV)/.peers  ## ratios against named peers, measured in one run
	@failed=""; for script in benchmarks/bench_*.py; do \
	  echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; done; \
	  test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

dist: setup  ## wheels and source archives of the three packages, in dist/
	rm -rf dist
	"$(UV)" build --quiet --all-packages --out-dir dist
	@ls -l dist

format: setup  ## lets ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(RUNTIME) dist build .pytest_cache .mypy_cache .ruff_cache
