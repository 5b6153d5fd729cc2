"""`dissim info`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from tyro.conf import arg

from dissim_kernels import available_backends, unavailable_backends

from ..embedding_file import read_embedding_file
from ..fitted_gallery import fitted_head
from ..index import DissimilarityIndex
from ..models import BACKBONES
from ..photos import gallery_network
from ..projected import ProjectedHead
from ..train import load_trained, run_folder
from .arguments import is_embedding_file, is_gallery
from .output import Output, facts

EXPECTED = "path: expected a run, a gallery, a file of embeddings (.npz, .npy) or a file of `dissim fit`"
PACKAGES = (
    "dissim-kernels",
    "torch",
    "triton",
    "numpy",
    "pylance",
    "kornia",
    "accelerate",
    "pytorch-metric-learning",
)


def info(
    path: Annotated[Path | None, arg(metavar="PATH", help="A run, a gallery, embeddings or a fitted head.")] = None, /
) -> Output:
    """Describe a run, a gallery, an embeddings file or a file of `dissim fit`.

    Without PATH, print the versions and what runs on this machine.
    """
    if path is None:
        return _machine()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    if is_embedding_file(path):
        return _embeddings(path)
    if is_gallery(path):
        return _gallery(path)
    if (path / "config.json").is_file():
        return _run(path)
    try:
        if path.is_file():
            return _fit(path)
    except ValueError as error:
        raise ValueError(f"{EXPECTED}, got {path}, a file that is none of them ({error})") from error
    what = "a folder of other files" if any(path.iterdir()) else "an empty folder"
    raise ValueError(f"{EXPECTED}, got {path}, {what}. `dissim train RUN --root PHOTOS` takes photos.")


def _machine() -> Output:
    packages = {package: _installed(package) for package in PACKAGES}
    missing = unavailable_backends()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    record = {
        "kind": "machine",
        "python": platform.python_version(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "packages": packages,
        "backends": list(available_backends()),
        "unavailable_backends": dict(missing),
        "gpus": gpus,
        "threads": torch.get_num_threads(),
        "networks": list(BACKBONES),
    }
    shown = {
        "python": f"{record['python']}, {record['system']} {record['architecture']}",
        **{package: version or "not installed" for package, version in packages.items()},
        **{f"backend {name}": "available" for name in available_backends()},
        **{f"backend {name}": f"not available: {reason}" for name, reason in missing.items()},
        "GPU": ", ".join(gpus) or "none",
        "threads": record["threads"],
        "networks": ", ".join(BACKBONES),
    }
    return facts(shown, record)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _embeddings(path: Path) -> Output:
    stored = read_embedding_file(path)
    count, dim = stored.embeddings.shape
    dtype = _dtype(stored.embeddings)
    identities = None if stored.labels is None else len(np.unique(stored.labels))
    record = {
        "kind": "embeddings",
        "rows": count,
        "dim": dim,
        "dtype": dtype,
        "identities": identities,
        "has_ids": stored.ids is not None,
        "provenance": stored.provenance,
    }
    shown = {
        "embeddings": f"{count} of {dim} numbers, {dtype}",
        "identities": "no labels" if identities is None else identities,
        "ids": "row numbers" if stored.ids is None else f"{stored.ids[0]}, ..." if stored.ids else "none",
        **_provenance(stored.provenance),
    }
    return facts(shown, record)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _gallery(path: Path) -> Output:
    index = DissimilarityIndex.open(path, in_memory=False)
    dim, dtype, provenance = len(index.head.weight), _dtype(index.head.weight), index.provenance or {}
    reason = _no_search_with_photos(index)
    record = {
        "kind": "gallery",
        "rows": len(index),
        "dim": dim,
        "dtype": dtype,
        "version": index.version,
        "searches_with_photos": reason is None,
        "reason": reason,
        "provenance": provenance,
    }
    shown = {
        "rows": f"{len(index)} of {dim} numbers, {dtype}",
        "version": index.version,
        "searches with photos": "yes" if reason is None else f"no: {reason}",
        **_provenance(provenance),
    }
    return facts(shown, record)


def _no_search_with_photos(index: DissimilarityIndex) -> str | None:
    """Why the gallery cannot be searched with photos; None if it can."""
    try:
        if fitted_head(index) is not None:
            return "it has a projection of embeddings"
        gallery_network(index)
    except (ValueError, ImportError) as error:
        return str(error)
    return None


def _fit(path: Path) -> Output:
    fitted = ProjectedHead.load(path)
    dim, projection = len(fitted.mean), len(fitted.head.weight)
    record = {
        "kind": "fit",
        "dim": dim,
        "projection": projection,
        "check": None if fitted.check is None else asdict(fitted.check),
        "provenance": fitted.provenance,
    }
    shown = {
        "projection": f"{dim} to {projection} numbers",
        "held-out check": fitted.check or "none",
        **_provenance(fitted.provenance),
    }
    return facts(shown, record)


def _run(path: Path) -> Output:
    config, provenance = run_folder.read_config(path)
    finished, begun = (path / run_folder.MODEL).exists(), (path / run_folder.CHECKPOINT).exists()
    if finished and provenance["backbone"]["name"] is not None:
        provenance = load_trained(path).provenance  # with the digest of the weights
    checkpoint: dict[str, Any] = run_folder.read_checkpoint(path) if begun else {"steps": 0, "best": None}
    done, best = checkpoint["steps"], checkpoint["best"]
    unknown, own_loss = finished and not begun, provenance.get("loss")
    record = {
        "kind": "run",
        "finished": finished,
        "steps": None if unknown else done,
        "best_validation": None if best is None else {"mAP": best["mAP"], "step": best["steps"]},
        "config": asdict(config),
        "provenance": provenance,
    }
    shown = {
        "steps": "finished; its checkpoint is gone" if unknown else f"{done} of {config.steps}",
        "loss": f"own, {own_loss['class']}" if own_loss else config.loss,
        "best validation": "none" if best is None else f"mAP {best['mAP']:.3f} at step {best['steps']}",
        **({} if finished else {"weights": "not finished"}),
        **_provenance(provenance),
    }
    return facts(shown, record)


def _provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    """What made the embeddings, in words; "fit" is told by the projection."""
    if not provenance.keys() - {"fit"}:
        return {"made by": "unknown: no provenance is recorded"}
    described: dict[str, Any] = {}
    for key, (heading, in_words) in PROVENANCE.items():
        recorded = provenance.get(key)
        if recorded:
            try:
                described[heading] = in_words(recorded)
            except (KeyError, TypeError, AttributeError):  # another program recorded it, in another form
                described[heading] = recorded
    return described


def _images(data: dict[str, Any]) -> str:
    return (
        f"{data['images']} images of {data['identities']} identities, {data['name']} in {data['root']}, fingerprint"
        f" {data['fingerprint'][:12]}"
    )


def _settings(split: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in split.items() if value is not None)


#: Key of a provenance -> heading, and the value in words.
PROVENANCE: dict[str, tuple[str, Callable[[Any], str]]] = {
    "model": ("weights", lambda digest: digest[:12]),
    "data": ("trained on", _images),
    "validation": ("held out", _images),
    "split": ("split", _settings),
    "backbone": ("backbone", lambda backbone: backbone["name"] or backbone["class"]),
    "transform": ("image size", lambda transform: "x".join(map(str, transform["size"]))),
}
