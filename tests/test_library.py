"""The compiled library in use: it loads, and it names the libraries whose functions it calls."""

from pathlib import Path

import dissim_kernels
import dissim_kernels.numpy


def test_it_loads():
    assert "cpu" in dissim_kernels.available_backends()
    assert dissim_kernels.numpy.build_info()["isa"]


def test_it_names_libtorch_as_needed():
    """libtorch.so brings in torch's functions for CUDA, though no symbol of it is linked."""
    library = Path(dissim_kernels.__file__).with_name("_native.so")
    assert b"\0libtorch.so\0" in library.read_bytes(), "the names stand so in its table of strings"
