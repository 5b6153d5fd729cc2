"""The folder of an index without its rows: index.json, head.safetensors and, if given, backbone.safetensors.

They are written once, when the folder is made. Nothing in them can run code.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..head import DissimilarityHead

FORMAT, VERSION = "dissim-index", 2
_OPTIONS = [p.name for p in inspect.signature(DissimilarityHead).parameters.values() if p.kind is p.KEYWORD_ONLY]
_DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}


class BackboneWeights(NamedTuple):
    """The network that made the embeddings: its name and its state dict."""

    name: str
    state: Mapping[str, Tensor]


class Settings(NamedTuple):
    """What an index knows besides its rows."""

    head: DissimilarityHead
    provenance: dict[str, Any] | None = None
    backbone: BackboneWeights | None = None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that gets the name `path` when the block ends, and is deleted if the block raises."""
    if path.exists():
        raise FileExistsError(
            f"path: expected a new path, got {path}, which exists. Choose another, or delete it first."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    made.mkdir()
    try:
        yield made
        sync(file for file in made.rglob("*"))
        made.rename(path)
        sync([path, path.parent])
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def sync(paths: Any) -> None:
    """Wait until the disk has these files and folders."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_settings(folder: Path, settings: Settings) -> None:
    """Write the files of the settings into a new folder."""
    head, provenance, backbone = settings
    digests = {"head": _write_tensors(folder / "head.safetensors", head.state_dict())}
    if backbone is not None:
        digests["backbone"] = _write_tensors(folder / "backbone.safetensors", backbone.state)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "dim": len(head.weight),
        "dtype": str(head.weight.dtype).removeprefix("torch."),
        "head": {name: getattr(head, name) for name in _OPTIONS},
        "provenance": provenance,
        "backbone": None if backbone is None else backbone.name,
        "sha256": digests,
    }
    (folder / "index.json").write_text(json.dumps(record, indent=1))


def read_settings(folder: Path) -> Settings:
    """Read what `write_settings` wrote. The files are compared with their SHA-256."""
    record = _read_record(folder)
    try:
        dtype, digests = _DTYPES[record["dtype"]], record["sha256"]
        head = DissimilarityHead(record["dim"], **record["head"]).to(dtype)
        head.load_state_dict(_read_tensors(folder / "head.safetensors", digests["head"]))
        backbone = None
        if record["backbone"] is not None:
            state = _read_tensors(folder / "backbone.safetensors", digests["backbone"])
            backbone = BackboneWeights(record["backbone"], state)
        return Settings(head.eval(), record["provenance"], backbone)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"path: {folder} is damaged: index.json or head.safetensors has {error!r}.") from error


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
        raise ValueError(f"path: {folder} is damaged: index.json is no JSON ({error}).") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{expected}, whose index.json is of another kind.")
    if record.get("version") != VERSION:
        raise ValueError(
            f"path: expected an index of format version {VERSION}, got {record.get('version')} in {folder}. "
            "Install the release of dissim-kernels that wrote it, or make it again from its embeddings."
        )
    return record


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    # save_file() of the library would make a file that only its owner can read.
    path.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    return _digest(path)


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        if _digest(path) == digest:
            return load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"path: {path.parent} is damaged: {path.name} is missing.") from error
    except SafetensorError as error:
        raise ValueError(f"path: {path} is damaged: {error}.") from error
    raise ValueError(f"path: {path} is damaged: its SHA-256 differs from that in index.json. Restore it from a copy.")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
