"""A plain model of an index, drawn writes, and a process that writes until it is killed."""

import os
from typing import NamedTuple

import numpy as np
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from dissim_retrieval.index import prepared_files
from dissim_retrieval.index.preparation import Preparation


class Write(NamedTuple):
    """A call of add, update, remove or optimize."""

    name: str
    ids: list
    rows: np.ndarray
    colors: list


class Model:
    """The rows of an index in a dictionary: id -> (embedding, color), in the order in which ids were added."""

    def __init__(self, dim, ids=str):
        self.dim, self.make_id, self.rows, self.count = dim, ids, {}, 0

    def draw(self, rng, max_rows=6):
        """A write that is valid now."""
        name = rng.choice(["add", "add", "update", "remove", "optimize"], p=[0.3, 0.25, 0.2, 0.2, 0.05])
        known = list(self.rows)
        size = int(rng.integers(1, max_rows + 1))
        if name == "add" or len(known) < size:
            name, ids = "add", [self.make_id(self.count + n) for n in range(size)]
        else:
            ids = [known[n] for n in rng.choice(len(known), size, replace=False)]
        rows = rng.standard_normal((size, self.dim)).astype(np.float32)
        if known and rng.random() < 0.3:
            rows[0] = self.rows[known[0]][0]  # so that scores are equal
        return Write(str(name), ids, rows, rng.choice(["red", "green", "blue"], size).tolist())

    def apply(self, write):
        if write.name == "add":
            self.count += len(write.ids)
        for name, row, color in zip(write.ids, write.rows, write.colors, strict=True):
            if write.name in ("add", "update"):
                self.rows[name] = row, color
            elif write.name == "remove":
                del self.rows[name]

    def matches(self, index):
        """Whether the index has these rows and no others."""
        if len(index) != len(self.rows):
            return False
        if not self.rows:
            return True
        try:
            stored = index.get(list(self.rows))
        except KeyError:
            return False
        rows = torch.from_numpy(np.stack([row for row, _ in self.rows.values()]))
        same = torch.equal(stored.embeddings, index.head.transform(rows).detach())
        return same and stored.metadata["color"] == [color for _, color in self.rows.values()]


def apply_write(index, write):
    if write.name == "add":
        index.add(write.rows, write.ids, {"color": write.colors})
    elif write.name == "update":
        index.update(write.rows, write.ids, {"color": write.colors})
    elif write.name == "remove":
        index.remove(write.ids)
    else:
        index.optimize()


def check_search(index, model, query, k, color=None):
    """Compare a search with a full sort in float64, in which equal scores are in the order of insertion."""
    listed = [name for name, (_, its_color) in model.rows.items() if color in (None, its_color)]
    found = index.search(query, k, filter=None if color is None else f"color = '{color}'")
    scores = torch.full((len(query), k), -torch.inf, dtype=torch.float64)
    if listed:
        head = DissimilarityHead(model.dim, scale=index.head.scale, normalize=index.head.normalize).double()
        head.load_state_dict(index.head.state_dict())
        rows = torch.from_numpy(np.stack([model.rows[name][0] for name in listed]))
        dtype = index.head.weight.dtype
        stored, query_rows = (
            index.head.transform(x.to(torch.promote_types(dtype, torch.float32))).to(dtype).double()
            for x in (rows, query)
        )
        differences = (query_rows[:, None] - stored).abs()
        exact = (differences * head.weight + head.bias / model.dim).sum(-1).detach()
        order = exact.sort(dim=1, descending=True, stable=True).indices[:, :k]
        scores[:, : order.shape[1]] = exact.gather(1, order)
    torch.testing.assert_close(found.scores.double(), scores, rtol=1e-5, atol=1e-5)
    place = {name: number for number, name in enumerate(listed)}
    for number, ids in enumerate(found.ids.tolist()):
        known = [name for name in ids if name not in (None, -1)]
        assert len(known) == min(k, len(listed)) == len(set(known))
        got = found.scores[number].tolist()
        for rank, name in enumerate(known):
            torch.testing.assert_close(exact[number, place[name]].item(), got[rank], rtol=1e-5, atol=1e-5)
            if rank and got[rank] == got[rank - 1]:
                assert place[known[rank - 1]] < place[name]


def write_until_killed(path, seed, start, acknowledged, options):
    """Apply drawn writes to the index at `path`. After each, a byte goes to `acknowledged`, a connection.

    start: how many writes of the sequence have been applied already; options: of DissimilarityIndex.open.
    """
    torch.set_num_threads(1)
    prepared_files.FILE_MIN_ROWS = Preparation.min_rows = 1
    index = DissimilarityIndex.open(path, **options)
    for number, write in enumerate(drawn_writes(seed, len(index.head.weight))):
        if number >= start:
            apply_write(index, write)
            os.write(acknowledged.fileno(), b"x")


def drawn_writes(seed, dim):
    """The endless sequence of writes of a seed."""
    rng, model = np.random.default_rng(seed), Model(dim)
    while True:
        write = model.draw(rng)
        model.apply(write)
        yield write
