"""Scores of all pairs and of row-aligned pairs: the public functions.

The operators behind them are in score_operators.py, the derivatives in score_derivatives.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contract import check_paired_inputs, check_score_inputs
from ..dispatch import check_backend
from .arguments import autocast_to_float32, head_bias
from .operator import call
from .score_derivatives import ScoreFunction
from .score_operators import score


def fused_dissim_score(
    query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | float | None = None, *, backend: str = "auto"
) -> Tensor:
    """Scores of all pairs, larger = "same": a signed weighted L1 score, without the N x M x D tensor.

    Plain torch (E1)::

        F.linear((query.unsqueeze(-2) - reference.unsqueeze(-3)).abs(), weight, bias)

    Args:
        query: [..., N, D], float16, bfloat16, float32 or float64, any strides.
        reference: [..., M, D], query's dtype; leading dimensions broadcast as in torch.cdist.
        weight: [D], or [C, D] for C heads; the embeddings' dtype, or float32 with half precision.
        bias: None, a number, a 0-d tensor, or [C]; dtype as weight.
        backend: "auto" or one of `available_backends()`. A named backend that cannot run the call raises an error.

    Returns:
        [..., N, M] for weight [D], [..., N, M, C] for weight [C, D], in the embeddings' dtype. Sums are accumulated
        in float32 (float64 for float64) and are within the rounding bound (E9). NaN and Inf give what plain torch
        gives.

    Gradients: for query, reference, weight and bias, with sign(0) = 0 (E2, E3). Only those that are required are
    computed. They can be differentiated once more; a third derivative raises NotImplementedError.

    Under autocast the call runs in float32, as torch.cdist does. Results are deterministic: the same input gives
    bit-identical output with any number of threads. The last bits of a pair's score may depend on the number of rows
    in the call, because calls with few rows and with many compute the sum in different forms (E1, E7).

    Cost: B C N M D terms ``|q_d - r_d|``, for B batch entries. Memory on the CPU, with any number of threads: forward
    needs the result and at most 2(N + M)D values of the embeddings' dtype and 16 MiB; backward needs the gradients
    and at most 3(N + M)D values and 16 MiB. The calling thread keeps 2 MiB of this memory for its next call. Backward
    may need more with fewer than 4 dimensions and more than 300,000 rows on both sides. Leading dimensions that
    broadcast are copied, except if they are absent or 1 on one side.

    Raises:
        TypeError, ValueError: an argument is not valid. The message names the argument, what was expected, what was
            given and how to fix it.
        RuntimeError: the named backend cannot run this call (the message has the reason), or memory is exhausted.

    >>> import torch
    >>> query, reference = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    >>> fused_dissim_score(query, reference, torch.tensor([-1.0, -0.5]), 1.0)
    tensor([[ 1., -1.]])
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_score_inputs(query, reference, weight, bias)
    lead = query.shape[:-2]
    if lead != reference.shape[:-2]:
        lead = torch.broadcast_shapes(lead, reference.shape[:-2])
    heads, bias = weight if weight.dim() == 2 else weight.unsqueeze(0), head_bias(bias, weight)
    query_rows = _batch(query, lead)
    # The same tensor object for both sides, because autograd then saves it only once.
    reference_rows = query_rows if reference is query else _batch(reference, lead)
    scores = call(ScoreFunction, score, query_rows, reference_rows, heads, bias, backend)
    if weight.dim() == 1:
        return scores.reshape(*lead, *scores.shape[2:])
    return scores.reshape(*lead, *scores.shape[1:]).movedim(-3, -1)


def paired_dissim_score(
    query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | float | None = None, *, backend: str = "auto"
) -> Tensor:
    """Scores of row-aligned pairs, larger = "same".

    Plain torch::

        F.linear((query - reference).abs(), weight, bias)

    query [..., D] and reference [..., D] broadcast; weight [D] gives [...], weight [C, D] gives [..., C].
    Dtypes, gradients, errors and backends are those of `fused_dissim_score`.

    >>> import torch
    >>> paired_dissim_score(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([-1.0, -0.5]))
    tensor([-2.])
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_paired_inputs(query, reference, weight, bias)
    scores = fused_dissim_score(query.unsqueeze(-2), reference.unsqueeze(-2), weight, bias, backend=backend)
    return scores[..., 0, 0] if weight.dim() == 1 else scores[..., 0, 0, :]


def _batch(rows: Tensor, lead: torch.Size) -> Tensor:
    """[..., R, D] -> [B, R, D] with the leading dimensions broadcast to `lead`."""
    if not lead:
        return rows.unsqueeze(0)
    return rows.expand(*lead, *rows.shape[-2:]).reshape(math.prod(lead), *rows.shape[-2:])
