"""The competitors of dissim_kernels. Importing this package registers all of them, installed or not."""

from . import keops, libraries, numba_loops, plain_torch  # noqa: F401
