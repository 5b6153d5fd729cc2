"""Drawn searches of shards, compared with one index bit for bit."""

import torch


def same_answers(index, single, rng, searches=3):
    """Searches of every kind; single: the same version as a DissimilarityIndex."""
    dim = len(single.head.weight)
    everything = single.search(torch.zeros(1, dim), max(1, len(single))).ids[0].tolist()
    for _ in range(searches):
        queries = int(rng.choice([1, 3, 40]))
        query = torch.from_numpy(rng.standard_normal((queries, dim))).float()
        if len(single) and rng.random() < 0.5:
            query[0] = single.get(everything[:1]).embeddings[0].float()
        k = int(rng.integers(1, 20))
        some = [everything[n] for n in rng.integers(0, len(everything), 9)]
        for options in (
            {},
            {"filter": "color = 'red'"},
            {"filter": list(dict.fromkeys(some))},
            {"group_by": "color", "fuse": str(rng.choice(["max", "mean", "min", "median"]))},
            {"group_by": "color", "fuse": "mean", "filter": list(dict.fromkeys(some))},
        ):
            same(index.search(query, k, **options), single.search(query, k, **options))
        threshold = float(single.search(query, k).scores[0, -1])
        same(index.range_search(query, threshold), single.range_search(query, threshold))
        offsets = torch.arange(queries + 1) * 9 // queries
        same((index.ranks(query, offsets, some),), (single.ranks(query, offsets, some),))


def same(answer, expected):
    for got, part in zip(answer, expected, strict=True):
        assert torch.equal(got, part) if isinstance(part, torch.Tensor) else got.tolist() == part.tolist()
