"""The memory of `retrieval_metrics` for 20,000 queries and a gallery of 200,000: N x M scores would be 15 GiB.

This file run as a program is the process that is measured. It takes some minutes.
"""

import json
import resource
import subprocess
import sys
import time

import pytest
import torch

QUERIES, GALLERY, DIM, MATCHES = 20_000, 200_000, 256, 10
CHECKED = 20


def test_memory_grows_with_rows_and_matches():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["peak_bytes"] < 2 << 30, "of the whole process, with PyTorch and the embeddings"
    assert found["matches"] == [MATCHES] * CHECKED
    # Nearly equal scores may be rounded to another order.
    assert found["average_precision"] == pytest.approx(found["by_sorting"], rel=1e-3), "of some queries"


def measure():
    from dissim_retrieval import DissimilarityHead, per_query_metrics

    draw = torch.Generator().manual_seed(0)
    gallery_labels = torch.arange(GALLERY) % (GALLERY // MATCHES)
    query_labels = torch.randint(0, GALLERY // MATCHES, (QUERIES,), generator=draw)
    centers = torch.randn(GALLERY // MATCHES, DIM, generator=draw)
    gallery = centers[gallery_labels] + 2 * torch.randn(GALLERY, DIM, generator=draw)
    query = centers[query_labels] + 2 * torch.randn(QUERIES, DIM, generator=draw)
    del centers
    head = DissimilarityHead(DIM, constraint="none")
    start = time.perf_counter()
    found = per_query_metrics(query, gallery, head, query_labels, gallery_labels)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    some = per_query_metrics(
        query[:CHECKED], gallery, lambda q, r: head(q, r), query_labels[:CHECKED], gallery_labels, block=1
    )
    record = {
        "queries": QUERIES,
        "gallery": GALLERY,
        "peak_bytes": peak,
        "seconds": seconds,
        "mAP": found.summary()["mAP"],
        "matches": found.matches[:CHECKED].tolist(),
        "average_precision": found.average_precision[:CHECKED].tolist(),
        "by_sorting": some.average_precision.tolist(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    measure()
