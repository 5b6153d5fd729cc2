"""More references than 2**24, up to which float32 has every integer."""

import torch

from dissim_kernels import fused_dissim_topk, quantize_references


def test_codes_of_more_than_2_to_the_24_rows():
    rows = 2**24 + 4
    reference, query, weight = torch.rand(rows, 1).add_(1), torch.tensor([[0.3]]), torch.tensor([-1.0])
    reference[-1] = 0.3
    found = fused_dissim_topk(query, reference, weight, k=3, quantized=quantize_references(reference, weight))
    expected = fused_dissim_topk(query, reference, weight, k=3)
    assert found.indices[0, 0] == rows - 1
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.scores, expected.scores)
