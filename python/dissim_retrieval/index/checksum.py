"""A checksum of 64 bits for every row, because the files of the storage library have none."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

EMPTY = pa.scalar("", pa.large_string())


def row_checksums(table: pa.Table) -> np.ndarray:
    """int64 [rows] over the values of all columns but "_checksum". Any change of one value changes it.

    The bytes of the vector are words of 64 bits. Their sum, each multiplied by an odd number of its column, is a
    universal hash (Carter and Wegman 1979). CRC-32 of the other values, as text, is added.
    """
    vectors = table.column("embedding").combine_chunks()
    words = _words(vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1))
    factors = np.random.default_rng(0).integers(0, 1 << 64, words.shape[1], np.uint64) | np.uint64(1)
    total = words @ factors  # modulo 2**64
    texts = pc.binary_join_element_wise(
        *(
            _text(name, table.column(name).combine_chunks())
            for name in sorted(table.column_names)
            if name not in ("embedding", "_checksum")
        ),
        EMPTY,
    )
    crcs = (zlib.crc32(text.encode()) for text in texts.to_pylist())
    return (total + (np.fromiter(crcs, np.uint64, len(table)) << np.uint64(16))).view(np.int64)


def _text(name: str, column: pa.Array) -> pa.Array:
    """name=value of every row; nothing for null, so that a column that is added later changes no checksum."""
    values = column.cast(EMPTY.type)
    before, after = pa.scalar(f"{name}=", EMPTY.type), pa.scalar("\n", EMPTY.type)
    text = pc.binary_join_element_wise(before, values, after, EMPTY, null_handling="replace")
    return pc.if_else(pc.is_valid(column), text, EMPTY)


def _words(rows: np.ndarray) -> np.ndarray:
    data = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    missing = -data.shape[1] % 8
    return (np.pad(data, ((0, 0), (0, missing))) if missing else data).view(np.uint64)
