"""`dissim info`."""

from __future__ import annotations

import platform
from collections.abc import Callable
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
from .arguments import is_embedding_file
from .output import Output, facts

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
        return facts(_machine())
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    if is_embedding_file(path):
        return facts(_embeddings(path))
    if (path / "index.json").is_file():
        return facts(_gallery(path))
    if (path / "config.json").is_file():
        return facts(_run(path))
    if path.is_file():
        return facts(_fit(path))
    raise ValueError(f"path: expected a run, a gallery, a file of embeddings or of `dissim fit`, got {path}.")


def _machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        **{package: _installed(package) for package in PACKAGES},
        **{f"backend {name}": "available" for name in available_backends()},
        **{f"backend {name}": f"not available: {reason}" for name, reason in unavailable_backends().items()},
        "GPU": ", ".join(gpus) or "none",
        "threads": torch.get_num_threads(),
        "networks": ", ".join(BACKBONES),
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _embeddings(path: Path) -> dict[str, Any]:
    stored = read_embedding_file(path)
    count, dim = stored.embeddings.shape
    return {
        "embeddings": f"{count} of {dim} numbers, {str(stored.embeddings.dtype).removeprefix('torch.')}",
        "identities": "no labels" if stored.labels is None else len(np.unique(stored.labels)),
        "ids": "row numbers" if stored.ids is None else f"{stored.ids[0]}, ..." if stored.ids else "none",
        **_provenance(stored.provenance),
    }


def _gallery(path: Path) -> dict[str, Any]:
    index = DissimilarityIndex.open(path)
    weight = index.head.weight
    return {
        "rows": f"{len(index)} of {len(weight)} numbers, {str(weight.dtype).removeprefix('torch.')}",
        "version": index.version,
        "searches with photos": _searches_with_photos(index),
        **_provenance(index.provenance or {}),
    }


def _searches_with_photos(index: DissimilarityIndex) -> str:
    if fitted_head(index) is not None:
        return "no: it has a projection of embeddings"
    try:
        gallery_network(index)
    except (ValueError, ImportError) as error:
        return f"no: {error}"
    return "yes"


def _fit(path: Path) -> dict[str, Any]:
    fitted = ProjectedHead.load(path)
    return {
        "projection": f"{len(fitted.mean)} to {len(fitted.head.weight)} numbers",
        "held-out check": fitted.check or "none",
        **_provenance(fitted.provenance),
    }


def _run(path: Path) -> dict[str, Any]:
    config, provenance = run_folder.read_config(path)
    finished, begun = (path / run_folder.MODEL).exists(), (path / run_folder.CHECKPOINT).exists()
    if finished:
        provenance = load_trained(path).provenance  # with the digest of the weights
    checkpoint: dict[str, Any] = run_folder.read_checkpoint(path) if begun else {"steps": 0, "best": None}
    done, best = checkpoint["steps"], checkpoint["best"]
    return {
        "steps": "finished; its checkpoint is gone" if finished and not begun else f"{done} of {config.steps}",
        "loss": config.loss,
        "best validation": "none" if best is None else f"mAP {best['mAP']:.3f} at step {best['steps']}",
        **({} if finished else {"weights": "not finished"}),
        **_provenance(provenance),
    }


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
