"""Losses for a batch of embeddings and labels, on the head's scores.

All are called as ``loss(embeddings, labels)``: embeddings [B, D], labels int64 [B] -> 0-d. A third argument,
`References`, adds rows that the batch is compared with: those of other processes (`gather_references`) or of earlier
batches (`CrossBatchMemory`). The mean of the losses over the processes is then the loss of one process with the whole
batch, so data parallel training, which averages gradients over processes, has the same gradients. The loss of an
empty batch is 0 plus the head's penalty.

The softmax losses (InfoNCELoss, SupConLoss, NCALoss, PrototypeLoss) do not depend on the head's bias and leave it as
it is: their scores rank, but 0 is no threshold for "same". HingeLoss and SoftMarginLoss train it.

Below, s_ij is the head's score of row i and reference j; P_i are the references other than i with the label of row i,
N_i those with other labels. No loss forms an N x M tensor of floats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dissim_kernels import fused_dissim_hinge_loss, fused_dissim_logsumexp, paired_dissim_score

from .head import DissimilarityHead, check_scored_by_weights
from .references import References, positive_pairs


class _HeadLoss(nn.Module):
    """A loss of the head's scores: checks the arguments, transforms the rows and adds the head's norm penalty.

    A head whose scores do not follow from its weights, such as a subclass with its own forward, raises TypeError.
    """

    def __init__(self, head: DissimilarityHead) -> None:
        super().__init__()
        check_scored_by_weights("head", head, "Write a loss of your own that calls it.")
        self.head = head

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        """embeddings [B, D], labels int64 [B] -> 0-d. references: default the batch itself."""
        check_batch(embeddings, labels)
        batch = _pair_batch(self.head, self._bias(), embeddings, labels, references)
        return self._loss(batch) + self.head.penalty()

    def _bias(self) -> Tensor | None:
        return self.head.bias[0]

    def _loss(self, batch: _PairBatch) -> Tensor:
        raise NotImplementedError


class _SoftmaxLoss(_HeadLoss):
    """A loss of softmaxes over scores, which a bias on all of them does not change: its gradient is exactly 0."""

    def __init__(self, head: DissimilarityHead, *, scale: float = 4.0) -> None:
        super().__init__(head)
        _check_positive(scale=scale)
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        """embeddings [B, D], labels int64 [B] -> 0-d. references: default the batch itself."""
        return super().forward(embeddings, labels, references) + _unused(self.head.bias)

    def _bias(self) -> None:
        return None


class HingeLoss(_HeadLoss):
    """Hinge loss: the mean of max(0, margin - y_ij s_ij) over pairs, y = 1 for equal labels and -1 otherwise (E12).

    Args:
        head: the scores, and the penalty that is added if the head's constraint is "penalty".
        margin: a pair with y s >= margin has no loss. A head starts with score 1 for equal rows.
        num_hard_negatives: keep only this many highest-scoring negatives of each row (None keeps all, most of which
            are easy).
        balance: "classes" gives positives and negatives one half of the weight each; "pairs" gives every pair the
            same weight.

    Sampling and balance are our choices, see DissimilarityHead. Plain torch, and the cost: `fused_dissim_hinge_loss`.
    With FSDP, apply `fully_shard` to this module or to one that contains it. If only the head is sharded, its weights
    are complete only while the head itself is called.
    """

    def __init__(
        self,
        head: DissimilarityHead,
        *,
        margin: float = 1.0,
        num_hard_negatives: int | None = 2,
        balance: str = "classes",
    ) -> None:
        super().__init__(head)
        check_finite(margin=margin)
        self.margin, self.num_hard_negatives, self.balance = margin, num_hard_negatives, balance

    def _loss(self, batch: _PairBatch) -> Tensor:
        positives = batch.references.positive_counts()
        negatives = len(batch.columns) - 1 - positives
        if self.num_hard_negatives is not None:
            negatives = negatives.clamp(max=self.num_hard_negatives)
        part = fused_dissim_hinge_loss(
            *batch.operands, batch.labels, batch.references.all_labels, margin=self.margin, balance=self.balance,
            num_hard_negatives=self.num_hard_negatives, exclude_index=batch.own_rows,
            pair_counts=(positives.sum(), negatives.sum()),
        )  # fmt: skip
        return batch.processes * part


class SoftMarginLoss(_HeadLoss):
    """The hinge with a soft maximum, in the form of the multi-similarity loss (Wang et al. 2019, arXiv 1904.06627).

    The mean over rows of::

        log(1 + sum over P_i of exp(alpha (margin - s_ij))) / alpha
        + log(1 + sum over N_i of exp(beta (margin + s_ij))) / beta

    As beta grows, the second term approaches the hinge on the row's hardest negative, max(0, margin + max s_ij). It
    is larger by at most log(1 + M) / beta. As alpha grows, the first term approaches the hinge on the hardest
    positive.

    Args:
        head: the scores, and the penalty that is added if the head's constraint is "penalty".
        margin: as in HingeLoss.
        alpha, beta: how sharply the hardest positives and negatives dominate their rows; above 0.

    Cost: two calls of `fused_dissim_logsumexp`.
    """

    def __init__(
        self, head: DissimilarityHead, *, margin: float = 1.0, alpha: float = 2.0, beta: float = 40.0
    ) -> None:
        super().__init__(head)
        check_finite(margin=margin)
        _check_positive(alpha=alpha, beta=beta)
        self.margin, self.alpha, self.beta = margin, alpha, beta

    def _loss(self, batch: _PairBatch) -> Tensor:
        hardest_positive = batch.logsumexp(-self.alpha, "same")
        hardest_negative = batch.logsumexp(self.beta, "different")
        return (
            _mean(_log1p_exp(hardest_positive + self.alpha * self.margin)) / self.alpha
            + _mean(_log1p_exp(hardest_negative + self.beta * self.margin)) / self.beta
        )


class InfoNCELoss(_SoftmaxLoss):
    """Cross-entropy of each positive pair against the row's negatives (InfoNCE, van den Oord et al. 2018; NT-Xent).

    The mean over positive pairs (i, j) of::

        -log(exp(scale s_ij) / (exp(scale s_ij) + sum over k in N_i of exp(scale s_ik)))

    Other positives of a row are not in its denominator. 0 if there is no positive pair.

    Args:
        head: the scores, and the penalty that is added if the head's constraint is "penalty".
        scale: the inverse temperature, above 0.

    Cost: one call of `fused_dissim_logsumexp`, and the positive pairs' rows, [pairs, D].
    """

    def _loss(self, batch: _PairBatch) -> Tensor:
        row, score = batch.positive_scores()
        losses = _log1p_exp(batch.logsumexp(self.scale, "different")[row] - self.scale * score)
        return batch.processes * losses.sum() / batch.references.positive_counts().sum().clamp(min=1)


class SupConLoss(_SoftmaxLoss):
    """Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, its L_out).

    The mean over rows with a positive of::

        log(sum over all j other than i of exp(scale s_ij)) - mean over P_i of scale s_ij

    It equals InfoNCELoss if every row has one positive. 0 if no row has a positive.

    Args:
        head: the scores, and the penalty that is added if the head's constraint is "penalty".
        scale: the inverse temperature, above 0.

    Cost: one call of `fused_dissim_logsumexp`, and the positive pairs' rows, [pairs, D].
    """

    def _loss(self, batch: _PairBatch) -> Tensor:
        row, score = batch.positive_scores()
        count = torch.bincount(row, minlength=len(batch.rows))
        value = batch.logsumexp(self.scale, "all")
        mean_score = torch.zeros_like(value).index_add(0, row, score) / count.clamp(min=1)
        return batch.mean_over_anchors(value - self.scale * mean_score, count > 0)


class NCALoss(_SoftmaxLoss):
    """Minus the log-probability that a row's softmax over the scores picks a positive (Goldberger et al. 2004).

    The mean over rows with a positive of::

        log(sum over all j other than i of exp(scale s_ij)) - log(sum over P_i of exp(scale s_ij))

    It equals InfoNCELoss and SupConLoss if every row has one positive. With more positives, it is enough that a row
    is close to some of them. Its memory does not grow with the number of positive pairs. 0 if no row has a positive.

    Args:
        head: the scores, and the penalty that is added if the head's constraint is "penalty".
        scale: the inverse temperature, above 0.

    Cost: two calls of `fused_dissim_logsumexp`.
    """

    def _loss(self, batch: _PairBatch) -> Tensor:
        same = batch.logsumexp(self.scale, "same")
        return batch.mean_over_anchors(batch.logsumexp(self.scale, "all") - same, same > -torch.inf)


class PrototypeLoss(_HeadLoss):
    """Softmax cross-entropy of each row over learned class prototypes, for classes that are known in advance.

    Plain torch: ``F.cross_entropy(scale * head(embeddings, prototypes), labels)``, without the [B, C] matrix. The
    parameter `prototypes` [num_classes, D] belongs to the loss: give ``loss.parameters()`` to the optimizer, and
    reduce its gradient over processes (wrap the loss in DistributedDataParallel). `references` are not used.

    Args:
        head: the scores, and the penalty that is added if the head's constraint is "penalty".
        num_classes: the labels are 0 to num_classes - 1; others raise ValueError.
        scale: the inverse temperature, above 0.

    Cost: one call of `fused_dissim_logsumexp`.
    """

    def __init__(self, head: DissimilarityHead, num_classes: int, *, scale: float = 4.0) -> None:
        super().__init__(head)
        _check_positive(num_classes=num_classes, scale=scale)
        self.scale = scale
        self.prototypes = nn.Parameter(torch.randn(num_classes, len(head.weight)))

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        """embeddings [B, D], labels int64 [B] from 0 to num_classes - 1 -> 0-d."""
        check_batch(embeddings, labels)
        if ((labels < 0) | (labels >= len(self.prototypes))).any():
            low, high = labels.min().item(), labels.max().item()
            raise ValueError(
                f"labels: expected 0 to {len(self.prototypes) - 1} for {len(self.prototypes)} classes, got {low} to "
                f"{high}. Number the classes from 0."
            )
        prototypes = self.prototypes.to(embeddings.dtype)
        rows, columns = self.head.transform(embeddings), self.head.transform(prototypes)
        value = fused_dissim_logsumexp(rows, columns, self.head.weight, scale=self.scale, among="all")
        own = paired_dissim_score(rows, columns[labels], self.head.weight).to(value.dtype)
        return _mean(value - self.scale * own) + self.head.penalty() + _unused(self.head.bias)


class _PairBatch(NamedTuple):
    """The pairs of one batch with its references, as operands of the fused operators."""

    weight: Tensor  # [D]
    bias: Tensor | None  # 0-d
    rows: Tensor  # [N, D], transformed
    labels: Tensor  # int64 [N]
    columns: Tensor  # [M, D], transformed
    references: References
    own_rows: Tensor  # int64 [N]: the column that is the row itself
    processes: int  # rows of the whole batch / N: batches have the same size on each

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.rows, self.columns, self.weight, self.bias

    def logsumexp(self, scale: float, among: str) -> Tensor:
        labels = (None, None) if among == "all" else (self.labels, self.references.all_labels)
        return fused_dissim_logsumexp(
            *self.operands, scale=scale, query_labels=labels[0], reference_labels=labels[1], among=among,
            exclude_index=self.own_rows,
        )  # fmt: skip

    def positive_scores(self) -> tuple[Tensor, Tensor]:
        """Row and score of each positive pair, the score in the dtype of `logsumexp`."""
        row, column = positive_pairs(self.labels, self.references.all_labels, self.own_rows)
        scores = paired_dissim_score(self.rows[row], self.columns[column], self.weight, self.bias)
        return row, scores if scores.dtype == torch.float64 else scores.float()

    def mean_over_anchors(self, values: Tensor, anchors: Tensor) -> Tensor:
        """The mean of `values` [N] over the rows with a positive, with their number counted on all processes."""
        total = (self.references.positive_counts() > 0).sum().clamp(min=1)
        return self.processes * values[anchors].sum() / total


def _pair_batch(
    head: DissimilarityHead, bias: Tensor | None, embeddings: Tensor, labels: Tensor, references: References | None
) -> _PairBatch:
    rows = head.transform(embeddings)
    if references is None:
        references = References(embeddings, labels)
    columns = rows if references.embeddings is embeddings else head.transform(references.embeddings)
    if references.memory is not None:
        # Only the batch's rows are transformed with a graph; the memory is by far the larger part.
        columns = torch.cat([columns, head.transform(references.memory).to(columns.dtype)])
    own_rows = references.own_rows(len(rows))
    processes = len(references.labels) // max(1, len(rows))
    return _PairBatch(head.weight, bias, rows, labels, columns, references, own_rows, processes)


def _unused(parameter: Tensor) -> Tensor:
    """0, with zero gradient: DistributedDataParallel expects a gradient of every parameter."""
    return 0 * parameter.sum()


def check_batch(embeddings: Tensor, labels: Tensor) -> None:
    """embeddings [B, D] of a floating dtype, labels int64 [B], both tensors on one device."""
    for name, value in (("embeddings", embeddings), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}. Use torch.as_tensor({name}).")
    if embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise ValueError(f"embeddings: expected floats [B, D], got {embeddings.dtype} {list(embeddings.shape)}.")
    if labels.dtype != torch.int64 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels: expected int64 [{len(embeddings)}], one per row of embeddings, got {labels.dtype} "
            f"{list(labels.shape)}."
        )


def _log1p_exp(values: Tensor) -> Tensor:
    """log(1 + exp(values)), exact in float64 too: F.softplus drops what is below exp(-20)."""
    return torch.logaddexp(values, values.new_zeros(()))


def _mean(values: Tensor) -> Tensor:
    """0 of no values, where `Tensor.mean` gives NaN."""
    return values.mean() if len(values) else values.sum()


def check_finite(**values: float) -> None:
    """Options of a loss that may have either sign."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}. Omit it for the default.")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a positive finite number, got {value}. Choose one above 0.")
