"""What the writes of both stores have in common: how long a writer waits, and which segments it merges."""

from __future__ import annotations

from collections.abc import Iterator

#: How long a writer waits for another one.
LOCK_SECONDS = 10
#: Sizes below which segments are merged, if there are many.
SIZE_CLASSES = (1 << 10, 1 << 14, 1 << 18, 1 << 20)
#: So many segments below a size are merged.
MIN_SEGMENTS_TO_MERGE = 16


def merge_targets(sizes: list[int]) -> Iterator[int]:
    """The sizes below which segments of these sizes should be merged, smallest first.

    Merging by size class rewrites a row a few times only, and leaves few segments.
    """
    for target in SIZE_CLASSES:
        if sum(size < target for size in sizes) >= MIN_SEGMENTS_TO_MERGE:
            yield target
