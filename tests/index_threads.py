"""Search an index in several threads while it is written."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex


def search_while_writing(path, seconds, threads=8):
    """Every answer must be that of a state between two writes. Scores are small integers, so they are exact."""
    head = DissimilarityHead(2, normalize=False)
    with torch.no_grad():
        head.weight.fill_(-1)
        head.bias.zero_()
    index = DissimilarityIndex(head) if path is None else DissimilarityIndex.create(path, head)
    rng, query, rows = np.random.default_rng(0), torch.zeros(1, 2), {}
    states, errors, stop, searches = {frozenset()}, [], threading.Event(), [0] * threads

    def search(number):
        while not stop.is_set():
            scores, ids = index.search(query, 200, filter="id >= 0" if number == 0 else None)
            state = frozenset(pair for pair in zip(ids[0].tolist(), scores[0].tolist(), strict=True) if pair[0] >= 0)
            searches[number] += 1
            if state not in states:
                errors.append(state)

    def apply(change, ids, values):
        after = {name: row for name, row in rows.items() if name not in ids} | dict(zip(ids, values, strict=True))
        if change == "remove":
            after = {name: row for name, row in rows.items() if name not in ids}
        states.add(frozenset((name, -float(np.abs(row).sum())) for name, row in after.items()))
        if change == "remove":
            index.remove(ids)
        else:
            getattr(index, change)(np.array(values, np.float32), ids)
        rows.clear()
        rows.update(after)

    end = time.monotonic() + seconds
    with ThreadPoolExecutor(threads) as pool:
        searching = [pool.submit(search, number) for number in range(threads)]
        try:
            for step in itertools.count():
                if time.monotonic() > end:
                    break
                change = rng.choice(["add", "update", "remove"]) if 10 < len(rows) < 190 else "add"
                change = "remove" if len(rows) >= 190 else change
                known = list(rows)
                ids = [10 * step + n for n in range(5)] if change == "add" else known[:2] + known[-2:]
                apply(str(change), ids, rng.integers(-9, 10, (len(ids), 2)).tolist())
        finally:
            stop.set()
        for one in searching:
            one.result()
    assert not errors and min(searches) > 0 and step > 0
