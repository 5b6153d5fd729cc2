"""The compiled library: it loads, and it depends on the libraries whose functions it calls."""

from pathlib import Path

import dissim_kernels
import dissim_kernels.numpy


def test_library_loads():
    assert "cpu" in dissim_kernels.available_backends()
    assert dissim_kernels.numpy.build_info()["isa"]


def test_library_depends_on_libtorch():
    """libtorch.so loads torch's functions for CUDA, although no symbol of it is linked."""
    library = Path(dissim_kernels.__file__).with_name("_native.so")
    assert b"\0libtorch.so\0" in library.read_bytes(), "not in the string table"
