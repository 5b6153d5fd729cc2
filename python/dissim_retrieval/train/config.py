"""TrainConfig: everything that determines a training run, given its images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run, given its images.

    The fields from `margin` to `balance` are those of HingeLoss, the next ones those of DissimilarityHead. Their
    defaults were chosen for the hinge loss and pretrained networks in short runs: docs/experiments.md, Defaults, has
    the results for scale and head_lr.
    """

    loss: Literal["hinge", "soft_margin", "infonce", "supcon", "softmax", "prototype", "triplet", "own"] = "hinge"
    """Trains backbone and pair classifier, see `dissim_retrieval.losses`. triplet is the batch-hard baseline, which
    has no classifier. own: the module that is passed to train(), which sets it."""
    backbone: str = "efficientnet_lite0"
    """efficientnet_lite0, mobilenet_v2, small, timm:NAME, torchvision:NAME or hf:NAME. Not used if a module is passed
    to train()."""
    freeze: int | Literal["all"] = 0
    """Stages of the backbone, from the input on, that keep their weights: a number or all."""
    dim: int = 512
    """Width of the embeddings."""
    steps: int = 150
    """Optimizer steps, each on a batch."""
    identities: int = 64
    """Identities in a batch, each with `views` images."""
    views: int = 2
    """Images of each identity in a batch. Without a memory, the losses of pairs need at least 2, and 2 identities."""
    flip: float = 0.5
    """Fraction of the training images that are mirrored."""
    crop: float = 1.0
    """Smallest fraction of an image's area that a random crop keeps; the crop is resized to the full size. 1: no
    crop."""
    color: float = 0.0
    """Largest random change of brightness, contrast and saturation; 0.2 is up to 20 %."""
    erase: float = 0.0
    """Fraction of the training images of which a random rectangle is erased."""
    lr: float = 1e-3
    """Maximum learning rate of the backbone (AdamW): linear warm-up, then half a cosine to 0."""
    head_lr: float = 2e-2
    """Maximum learning rate of the classifier's weights and bias, and of other parameters of the loss."""
    warmup: float = 0.2
    """Fraction of the steps in which the learning rates increase."""
    weight_decay: float = 1e-2
    """Weight decay of the backbone; the classifier has a norm constraint instead."""
    clip_norm: float | None = None
    """Scale the gradient of each step so that its L2 norm is at most this."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the backbone's forward and backward pass (autocast). The loss is always float32."""
    memory: int = 0
    """Embeddings of earlier batches that a batch is compared with as well, after the warm-up (cross-batch memory)."""
    checkpoint_every: int = 100
    """Steps between checkpoints, if train() has a folder. One is also written when the last is a minute old."""
    validate_every: int = 50
    """Steps between validations, if train() has validation images."""
    patience: int | None = None
    """Stop after this many validations without a higher mAP. Needs validation images."""
    seed: int = 0
    """Seed of the new weights, the batches, the augmentation and dropout."""
    triplet_margin: float = 0.2
    """Margin of the triplet loss, in L2 distances of normalized embeddings."""
    margin: float = 1.0
    """Of the hinge loss: a pair of one identity has no loss from this score on, one of two identities from minus this
    score down."""
    num_hard_negatives: int | None = 2
    """Of the hinge loss: how many negatives of each image count, those with the highest scores; None: all."""
    balance: Literal["classes", "pairs"] = "classes"
    """Of the hinge loss. classes: positives and negatives each have half of the weight; pairs: every pair has the
    same."""
    constraint: Literal["project", "cap", "penalty", "none"] = "project"
    """What keeps the L2 norm of the classifier's weights. project: it is set to the radius after each step; cap: it
    is reduced to the radius; penalty: (norm - radius)**2 is added to the loss."""
    radius: float = 1.0
    """The norm that the constraint keeps, and the norm of the first weights."""
    sign: Literal["free", "negative"] = "free"
    """negative: no weight of the classifier above 0, so that its score is minus a weighted L1 distance."""
    normalize: bool = True
    """Whether the classifier scores normalized embeddings."""
    scale: float = 4.0
    """Length of the normalized embeddings."""
    learn_weight: bool = True
    """False keeps the classifier's weights as they start: minus an L1 distance. Its bias is trained."""
    positive_share: float = 0.0
    """Fraction of the classifier's weights that start positive. On emoji, 0.25 kept other identities of the query's
    camera out of the first results, and made results from other cameras worse: docs/experiments.md, Demo."""
    initial_bias: float = 1.0
    """The classifier's bias at the start, which is the score of equal embeddings."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            finite = not isinstance(value, float) or math.isfinite(value)
            _check(name, finite, "a finite number", value)
        for name in ("dim", "steps", "identities", "views", "checkpoint_every", "validate_every"):
            _check(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("lr", "head_lr"):
            _check(name, getattr(self, name) > 0, "a positive number", getattr(self, name))
        for name in ("flip", "erase", "warmup"):
            _check(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1", getattr(self, name))
        _check("crop", 0 < self.crop <= 1, "a number above 0, at most 1", self.crop)
        _check("color", 0 <= self.color < 1, "a number from 0 to below 1", self.color)
        _check("weight_decay", self.weight_decay >= 0, "0 or a positive number", self.weight_decay)
        _check("clip_norm", self.clip_norm is None or self.clip_norm > 0, "None or above 0", self.clip_norm)
        _check("patience", self.patience is None or self.patience >= 1, "None or at least 1", self.patience)
        hardest = self.num_hard_negatives
        _check("num_hard_negatives", hardest is None or hardest >= 0, "None or at least 0", hardest)
        _check("memory", self.memory >= 0, "0 or a number of embeddings", self.memory)
        _check("seed", self.seed >= 0, "0 or a positive number", self.seed)
        for name, hint in get_type_hints(TrainConfig).items():
            if get_origin(hint) is Literal:
                known = get_args(hint)
                _check(name, getattr(self, name) in known, f"one of {', '.join(known)}", getattr(self, name))


def _check(name: str, valid: bool, expected: str, value: object) -> None:
    if not valid:
        raise ValueError(f"{name}: expected {expected}, got {value!r}.")
