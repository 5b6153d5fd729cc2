"""The compiled library in use: it loads, and it names the libraries whose functions it calls."""

from pathlib import Path

import pytest

import dissim_kernels
import dissim_kernels.numpy


def test_it_loads():
    assert dissim_kernels.available_backends()["cpu"] is None
    assert dissim_kernels.numpy.report()["isa"]


@pytest.mark.parametrize("name", ["libtorch.so", "libtorch_cpu.so", "libc10.so"])
def test_it_names_as_needed(name):
    """libtorch.so brings in torch's functions for CUDA, though no symbol of it is linked."""
    library = Path(dissim_kernels.__file__).with_name("_native.so")
    assert f"\0{name}\0".encode() in library.read_bytes(), "names stand so in its table of strings"
