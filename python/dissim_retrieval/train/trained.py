"""Trained: the result of a training run, and load_trained(), which reads it from the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ..data import ImageSet
from ..head import DissimilarityHead
from ..models import Backbone, Preprocessing, build_backbone
from ..provenance import weights_digest
from . import run_folder
from .config import TrainConfig
from .objective import Objective
from .own_modules import module_settings, settings_digest


@dataclass(frozen=True)
class Trained:
    """The result of training: a backbone in eval mode and, if the loss has one, its pair classifier on the CPU."""

    backbone: nn.Module
    head: DissimilarityHead | None
    config: TrainConfig
    provenance: dict = field(default_factory=dict)
    """What the result came from: see `dissim_retrieval.provenance`."""

    @classmethod
    def of(cls, backbone: nn.Module, head: DissimilarityHead | None, config: TrainConfig, facts: Mapping) -> Trained:
        """In eval mode; the digest of the weights is added to the provenance."""
        head = None if head is None else head.cpu().eval()
        return cls(
            backbone.eval(), head, config, dict(facts) | {"model": weights_digest(backbone=backbone, head=head)}
        )


def load_trained(folder: str | Path, *, backbone: nn.Module | None = None) -> Trained:
    """The result of a finished train(..., folder=folder), on the CPU.

    backbone: your own module, if train() got one; its weights are loaded into it.
    """
    folder = Path(folder)
    config, facts = run_folder.read_config(folder)
    if not (folder / run_folder.MODEL).exists():
        steps = run_folder.saved_steps(folder)
        raise ValueError(
            f"folder: {folder} has an unfinished run ({steps} of {config.steps} steps). Call train() with it first."
        )
    if backbone is None and facts["backbone"]["name"] is None:
        kind = facts["backbone"]["class"]
        raise ValueError(f"backbone: the run in {folder} trained your own module, a {kind}. Pass it.")
    network = backbone if backbone is not None else build_backbone(config.backbone, config.dim, pretrained=False)
    weights = run_folder.read_model(folder)
    head = None if facts["head"] is None else DissimilarityHead(**facts["head"]).to(weights["head.weight"].dtype)
    load_weights(network, head, weights, source=folder)
    return Trained.of(network, head, config, facts)


def load_weights(
    backbone: nn.Module, head: DissimilarityHead | None, weights: Mapping[str, Tensor], *, source: object
) -> None:
    """Load the weights that `Objective.weights` gave."""
    for name, module in (("backbone", backbone), ("head", head)):
        if module is None:
            continue
        state = {key.removeprefix(f"{name}."): w for key, w in weights.items() if key.startswith(f"{name}.")}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{name}: expected the network that {source} was trained with, got another: {error}"
            ) from error


def describe(
    config: TrainConfig,
    objective: Objective,
    images: ImageSet,
    validation: ImageSet | None,
    *,
    own_backbone: bool,
    own_loss: bool,
) -> dict:
    """The provenance of a run, without the digest of its weights."""
    backbone, head = objective.backbone, objective.head
    preprocessing = backbone.preprocessing if isinstance(backbone, Backbone) else Preprocessing((0,) * 3, (1,) * 3)
    built = {"settings": settings_digest(backbone)} if own_backbone else {}
    return {
        "data": images.provenance(),
        "validation": None if validation is None else validation.provenance(),
        "transform": {"size": list(images.size), "mean": list(preprocessing.mean), "std": list(preprocessing.std)},
        "backbone": {"name": None if own_backbone else config.backbone, "class": type(backbone).__name__} | built,
        "loss": module_settings(objective.loss) if own_loss else None,
        "head": None if head is None else {"dim": len(head.weight)} | head.options(),
    }
