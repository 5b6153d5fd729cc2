"""ImageFiles: images on disk that are decoded when they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .decode import DamagedImageError, decode, printable

#: What to do about a damaged file, in the terms of the library and of the command line.
REMEDY = "Repair or remove it, or skip such files: skip_damaged=True, on the command line --skip-damaged."


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk, in the place of a uint8 tensor [B, 3, H, W]: indexing decodes, nothing is kept.

    `paths` are relative to `root`. See `decode` for what is done to an image.
    """

    root: str
    paths: list[str]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of the tensor: (B, 3, H, W)."""
        return (len(self), 3, *self.size)

    def __getitem__(self, rows: int | Sequence[int] | Tensor) -> Tensor:
        """uint8 [3, H, W] for a number, [len(rows), 3, H, W] for several."""
        if isinstance(rows, int):
            return torch.from_numpy(self._decoded(rows).copy())
        images = np.empty((len(rows), 3, *self.size), np.uint8)
        for place, row in enumerate(rows):
            images[place] = self._decoded(int(row))
        return torch.from_numpy(images)

    def _decoded(self, row: int) -> np.ndarray:
        """uint8 [3, H, W]."""
        try:
            return decode(self.path(row), self.size).transpose(2, 0, 1)
        except DamagedImageError as error:
            raise DamagedImageError(error.name, error.reason, REMEDY) from error

    def path(self, row: int) -> str:
        """The file of a row, with its root."""
        return os.path.join(self.root, self.paths[row])

    def take(self, rows: Sequence[int]) -> ImageFiles:
        """The files of these rows."""
        return ImageFiles(self.root, [self.paths[row] for row in rows], self.size)

    def ids(self) -> list[str]:
        """The relative paths as valid Unicode."""
        return [printable(path) for path in self.paths]

    def damage(self, rows: Sequence[int]) -> list[str]:
        """For each row, why it cannot be decoded, or "". Decodes every image."""
        return [self._damage(row) for row in rows]

    def _damage(self, row: int) -> str:
        try:
            decode(self.path(row), self.size)
        except (DamagedImageError, FileNotFoundError) as error:
            return str(error)
        return ""

    def digests(self) -> Iterator[bytes]:
        """For each file a digest of its length and of its first and last 4 KiB, where PNG has its checksums.

        A large file is not read whole. Takes about 20 µs a file in the disk cache.
        """
        for row in range(len(self)):
            with open(self.path(row), "rb", buffering=0) as file:
                length = os.fstat(file.fileno()).st_size
                head = file.read(4096)
                file.seek(max(len(head), length - 4096))
                yield hashlib.blake2b(b"%d " % length + head + file.read(4096), digest_size=16).digest()
