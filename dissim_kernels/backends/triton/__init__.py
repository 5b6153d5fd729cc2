"""The backend `triton`: kernels that need no compiler at installation, for NVIDIA (sm_80 and later) and AMD GPUs.

With TRITON_INTERPRET=1 in the environment before Python starts, the same kernels run on CPU tensors, slowly. Tests
use this where there is no GPU.

Results are bit-identical in every run: only integers are added atomically, and the order of other sums depends on
shapes only. Nothing is read back from the device, so score, hinge, log-sum-exp and their gradients can
be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import partial

import torch

from ...contract import Problem
from ..capability import capability, describe
from ..clusters import Scorer, make_clusters
from ..quantize import quantize_references  # noqa: F401
from ..reference import NO_SEARCH

#: The Triton version of the oldest supported torch. tests/triton_compile.py compiles all kernels with it and later.
OLDEST = (3, 6)


def unsupported_reason(problem: Problem) -> str | None:
    if _NOT_LOADED is not None:
        return _NOT_LOADED
    if problem.operation in NO_SEARCH:
        return NO_SEARCH[problem.operation]
    if problem.device.type == "cpu":
        if INTERPRETED:
            return None
        return "it runs tensors on a GPU, not on 'cpu'; with TRITON_INTERPRET=1 it interprets them, for tests"
    if problem.device.type != "cuda":
        return f"it runs tensors on a GPU that torch calls 'cuda', not on {problem.device.type!r}"
    if torch.version.cuda and capability(problem.device) < (8, 0):
        return f"it needs a GPU of compute capability 8.0 or more, this is {describe(problem.device)}"
    return None


def _raise_not_loaded(*arguments):
    raise RuntimeError(f"backend 'triton' cannot run: {_NOT_LOADED}")


try:
    from triton import __version__ as _version

    if tuple(map(int, _version.split(".")[:2])) < OLDEST:
        raise ImportError(f"this is {_version}")
    from .hinge import hinge, hinge_backward
    from .launch import INTERPRETED
    from .logsumexp import logsumexp, logsumexp_backward
    from .rank import listed_scores, rank
    from .score import score
    from .score_backward import score_backward
    from .topk import topk

    _NOT_LOADED = None
except ImportError as error:
    _NOT_LOADED = (
        f"Triton {'.'.join(map(str, OLDEST))} or newer cannot be imported ({error}). "
        "It is installed with torch for CUDA from 2.10 on; otherwise `pip install -U triton`."
    )
    hinge = hinge_backward = listed_scores = logsumexp = logsumexp_backward = _raise_not_loaded
    rank = score = score_backward = topk = _raise_not_loaded

cluster_references = partial(make_clusters, Scorer(score, topk))
