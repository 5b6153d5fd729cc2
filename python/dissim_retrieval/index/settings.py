"""The folder of an index without its rows: index.json, head.safetensors and, if given, backbone.safetensors.

They are written once, when the folder is made. Nothing in them can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..head import DissimilarityHead, check_storable

FORMAT, VERSION = "dissim-index", 2


class BackboneWeights(NamedTuple):
    """The network that made the embeddings: its name and its state dict."""

    name: str
    state: Mapping[str, Tensor]


class Settings(NamedTuple):
    """What an index knows besides its rows."""

    head: DissimilarityHead
    provenance: dict[str, Any] | None = None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that gets the name `path` when the block ends, and is deleted if the block raises."""
    _check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    made.mkdir()
    try:
        yield made
        sync(file for file in made.rglob("*"))
        _check_new(path)  # another process may have made it; a rename replaces no folder but an empty one
        made.rename(path)
        sync([path, path.parent])
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _check_new(path: Path) -> None:
    if path.exists():
        raise FileExistsError(
            f"path: expected a new path, got {path}, which exists. Choose another, or delete it first."
        )


def folder_identity(path: Path) -> tuple[int, int] | None:
    """Another one for every index that is made at `path`, whose index.json is written once; None without an index."""
    try:
        status = (path / "index.json").stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns


def sync(paths: Any) -> None:
    """Wait until the disk has these files and folders."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_settings(folder: Path, settings: Settings, backbone: BackboneWeights | None) -> None:
    """Write the files into a new folder."""
    head, provenance = settings
    check_storable("head", head)
    files = {"head": head.state_dict()} | ({} if backbone is None else {"backbone": backbone.state})
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "dim": len(head.weight),
        "dtype": str(head.weight.dtype).removeprefix("torch."),
        "head": head.options(),
        "provenance": provenance,
        "backbone": None if backbone is None else backbone.name,
        "sha256": {name: _write_tensors(_tensor_file(folder, name), tensors) for name, tensors in files.items()},
    }
    (folder / "index.json").write_text(json.dumps(record | {"checksum": _checksum(record)}, indent=1))


def read_settings(folder: Path) -> Settings:
    """Read what `write_settings` wrote. The files are compared with their checksums."""
    record = _read_record(folder)
    head = DissimilarityHead(record["dim"], **record["head"]).to(getattr(torch, record["dtype"]))
    head.load_state_dict(_read_tensors(folder, "head", record))
    return Settings(head.eval(), record["provenance"])


def read_backbone(folder: Path) -> BackboneWeights | None:
    """The backbone that `write_settings` wrote, None if it had none."""
    record = _read_record(folder)
    if record["backbone"] is None:
        return None
    return BackboneWeights(record["backbone"], _read_tensors(folder, "backbone", record))


def damaged(folder: Path, what: str) -> ValueError:
    """The error for a damaged index."""
    return ValueError(f"path: {folder} is damaged: {what}. Restore it from a copy, or make it again.")


def _read_record(folder: Path) -> dict[str, Any]:
    expected = f"path: expected a folder written by DissimilarityIndex.create or save, got {folder}"
    if not folder.exists():
        raise FileNotFoundError(f"{expected}, which does not exist.")
    if not (folder / "index.json").is_file():
        what = "without index.json" if folder.is_dir() else "a file"
        raise ValueError(f"{expected}, {what}. Indexes of earlier formats must be made again from their embeddings.")
    try:
        record = json.loads((folder / "index.json").read_text())
    except ValueError as error:
        raise damaged(folder, "index.json is no JSON") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{expected}, whose index.json is of another kind.")
    if record.get("version") != VERSION:
        raise ValueError(
            f"path: expected an index of format version {VERSION}, got {record.get('version')} in {folder}. "
            "Install the release of dissim-kernels that wrote it, or make it again from its embeddings."
        )
    if record.pop("checksum", None) != _checksum(record):
        raise damaged(folder, "index.json differs from its checksum")
    return record


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _tensor_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    # save_file() of the library would make a file that only its owner can read.
    path.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    return _digest(path)


def _read_tensors(folder: Path, name: str, record: dict[str, Any]) -> dict[str, Tensor]:
    path = _tensor_file(folder, name)
    if not path.is_file():
        raise damaged(folder, f"{path.name} is missing")
    if _digest(path) != record["sha256"].get(name):
        raise damaged(folder, f"{path.name} differs from its checksum")
    return load_file(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
