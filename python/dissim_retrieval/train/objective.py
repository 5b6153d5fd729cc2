"""Objective: from a batch of images and labels to the loss, in one module that DistributedDataParallel can wrap."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..distributed import gather_references, world_size
from ..embedding import embed
from ..head import OPTIONS, DissimilarityHead
from ..losses import HingeLoss, InfoNCELoss, NCALoss, PrototypeLoss, SoftMarginLoss, SupConLoss
from ..memory import CrossBatchMemory
from ..models import freeze_stages
from .config import TrainConfig

LOSSES = {"soft_margin": SoftMarginLoss, "infonce": InfoNCELoss, "supcon": SupConLoss, "softmax": NCALoss}


class Objective(nn.Module):
    """``loss(backbone(pixels), labels)``.

    The backbone runs in the precision of the config, the loss in float32 or the backbone's float64. With several
    processes, the loss is that of this process's rows against the rows of all; its mean over the processes is the
    loss of the whole batch. `head` is that of the loss, if it has one.

    Args:
        loss: default: the one that the config names. With several processes or a memory it is called with a third
            argument, `References`.
        num_identities: labels are 0 to num_identities - 1.
    """

    def __init__(
        self, config: TrainConfig, backbone: nn.Module, loss: nn.Module | None = None, *, num_identities: int
    ) -> None:
        super().__init__()
        self.precision = getattr(torch, config.precision)
        self.frozen = freeze_stages(backbone, config.freeze)
        self.backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dtype = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), torch.float32)
        dtype = torch.promote_types(dtype, torch.float32)
        self.loss = (loss or _build_loss(config, num_identities)).to(dtype)
        self.memory = CrossBatchMemory(config.memory, config.dim).to(dtype) if config.memory else None
        heads = [module for module in self.loss.modules() if isinstance(module, DissimilarityHead)]
        self.head = heads[0] if heads else None
        self.dim = config.dim if self.memory is not None else None
        if self.head is not None:
            self.dim = len(self.head.weight)

    def train(self, mode: bool = True) -> Objective:
        """Set train or eval mode; frozen stages stay in eval mode."""
        super().train(mode)
        for stage in self.frozen:
            stage.eval()
        return self

    def forward(self, pixels: Tensor, labels: Tensor, use_memory: bool = False) -> Tensor:
        """pixels [B, 3, H, W] in [0, 1], labels int64 [B] -> 0-d. use_memory: compare with the rows in it, too."""
        with torch.autocast(pixels.device.type, self.precision, enabled=self.precision != torch.float32):
            rows = embed(self.backbone, pixels)
        if self.dim is not None and rows.shape[1] != self.dim:
            raise ValueError(
                f"backbone: expected embeddings of dim = {self.dim} numbers, got {rows.shape[1]}."
                f" Set dim={rows.shape[1]}."
            )
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if self.memory is None and world_size() == 1:
            return self.loss(rows, labels)
        references = gather_references(rows, labels)
        if self.memory is None:
            return self.loss(rows, labels, references)
        loss = self.loss(rows, labels, self.memory.extend(references) if use_memory else references)
        self.memory.add(references)
        return loss

    def groups(self, config: TrainConfig) -> list[dict]:
        """The parameters to train, with their settings for the optimizer."""
        groups = [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad], "lr": config.lr},
            {"params": list(self.loss.parameters()), "lr": config.head_lr, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise ValueError(
                f"freeze: {config.freeze!r} leaves nothing to train. Freeze fewer stages of the backbone."
            )
        return groups

    def weights(self) -> dict[str, Tensor]:
        """Those of the result: "backbone.NAME" and, with a head, "head.NAME"."""
        modules = {"backbone": self.backbone, "head": self.head}
        return {f"{k}.{name}": w for k, m in modules.items() if m is not None for name, w in m.state_dict().items()}


def _build_loss(config: TrainConfig, num_identities: int) -> nn.Module:
    """The loss that the config names, with a new head."""
    if config.loss == "own":
        raise ValueError("loss: expected a module, since config.loss is own, got None. Pass train(..., loss=module).")
    _check_pairs(config)
    if config.loss == "triplet":
        from ..triplet import TripletLoss  # here, because pytorch-metric-learning takes a second to import

        return TripletLoss(margin=config.triplet_margin)
    head = DissimilarityHead(config.dim, **{name: getattr(config, name) for name in OPTIONS})
    if config.loss == "prototype":
        return PrototypeLoss(head, num_identities)
    if config.loss != "hinge":
        return LOSSES[config.loss](head)
    return HingeLoss(head, margin=config.margin, num_hard_negatives=config.num_hard_negatives, balance=config.balance)


def _check_pairs(config: TrainConfig) -> None:
    """Without pairs of one identity and of two, the losses of pairs are 0 and nothing would be learned."""
    has_memory = config.memory > 0 and config.warmup < 1
    if config.loss == "prototype" or has_memory:
        return
    for name, kind in (("identities", "two identities"), ("views", "one identity")):
        if getattr(config, name) < 2:
            raise ValueError(
                f"{name}: expected at least 2 with loss {config.loss}, which needs pairs of {kind}, got"
                f" {getattr(config, name)}. Choose more, or the loss prototype."
            )
