"""Files of what was prepared of the rows: 8-bit codes or clusters.

The name of a file is ``<folder>/<data file of the rows>.<CRC-32 of its own content>.safetensors``. Data files of rows
never change and their names are unique, so a file cannot become outdated. It has the rows in the order of their
sequence numbers, also those that were deleted since. A missing file is no error: the first search then prepares the
rows in memory.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ..atomic import atomic_write
from .preparation import PREPARATIONS, Preparation
from .segments import MemoryRows

#: Fewer rows have no file, because they are prepared in a moment.
FILE_MIN_ROWS = 10_000
#: Layout of the files.
VERSION = "1"


class PreparedFiles:
    """The files of one preparation.

    Args:
        path: the folder of the index.
        weight: that of the head in this folder, for which the files are made.
    """

    def __init__(self, path: Path, preparation: Preparation, weight: Tensor) -> None:
        self.preparation, self._weight = preparation, weight.detach().clone()
        self._folder = path / preparation.folder

    def read(self, data_file: str, rows: int) -> Any | None:
        """What was prepared of the `rows` rows of a data file, mapped into memory. None if there is no file."""
        path = self._find(data_file)
        if path is None:
            return None
        if _checksum(path) != path.name.split(".")[1]:
            raise self._unusable(path, "it differs from its checksum")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            tensors = load_file(path)  # maps the file
        except SafetensorError as error:
            raise self._unusable(path, str(error)) from error
        if metadata != (expected := _metadata(data_file, rows)):
            raise self._unusable(path, f"expected a file of {expected}, got one of {metadata}")
        names = self.preparation.result._fields[:-1]
        if set(tensors) != set(names):
            raise self._unusable(path, f"expected tensors {', '.join(names)}, got {', '.join(tensors)}")
        weight = self._weight.to("cpu", tensors["weight"].dtype)
        if not torch.equal(tensors["weight"].nan_to_num(), weight.nan_to_num()):
            raise self._unusable(path, "it was made for other weights")
        return self.preparation.result(*(tensors[name].to(self._weight.device) for name in names), rows)

    def write(self, data_file: str, vectors: MemoryRows) -> None:
        """Write the file for the rows of a data file, if they are many and it does not exist."""
        rows = len(vectors.rows)
        if rows < max(FILE_MIN_ROWS, self.preparation.min_rows) or self._find(data_file) is not None:
            return
        made = vectors.prepared(self.preparation, self._weight)
        tensors = dict(zip(made._fields[:-1], (tensor.cpu() for tensor in made[:-1]), strict=True))
        content = save(tensors, _metadata(data_file, rows))
        name = f"{Path(data_file).stem}.{zlib.crc32(content):08x}.safetensors"
        with atomic_write(self._folder / name) as file:
            file.write(content)

    def _find(self, data_file: str) -> Path | None:
        return next(self._folder.glob(f"{Path(data_file).stem}.*.safetensors"), None)

    def _unusable(self, path: Path, what: str) -> ValueError:
        remedy = f"Delete this file: optimize() of an index opened with {self.preparation.option}=True makes it again"
        return ValueError(f"path: {path} is damaged: {what}. {remedy}.")


def remove_unused(path: Path, data_folder: Path) -> None:
    """Delete the files, and parts of files, whose data file is no longer there. Only a writer may do that."""
    data_files = {file.stem for file in data_folder.glob("*.lance")}
    for preparation in PREPARATIONS:
        for file in (path / preparation.folder).glob("*"):
            if file.name.split(".")[0] not in data_files:
                file.unlink()


def _metadata(data_file: str, rows: int) -> dict[str, str]:
    return {"version": VERSION, "data_file": data_file, "rows": str(rows)}


def _checksum(path: Path) -> str:
    checksum = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"
