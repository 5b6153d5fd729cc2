"""What dissim_kernels is measured against. Importing this registers every competitor, installed or not."""

from . import keops, libraries, numba_loops, plain_torch  # noqa: F401
