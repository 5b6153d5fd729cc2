"""What a search can prepare of the rows of a segment, so that it computes fewer scores: 8-bit codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from dissim_kernels import QuantizedReferences, quantize_references


class Preparation(NamedTuple):
    """A function of rows and weights, and the argument of `fused_dissim_topk` that takes its result."""

    argument: str
    option: str  #: of DissimilarityIndex
    folder: str  #: of its files
    make: Callable[[Tensor, Tensor], Any]
    result: Any  #: what it returns: a named tuple of tensors and, last, the number of rows
    min_rows: int  #: smaller segments are searched without


CODES = Preparation("quantized", "quantized", "codes", quantize_references, QuantizedReferences, 1)
PREPARATIONS = (CODES,)
