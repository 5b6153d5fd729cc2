"""A projection and the pair classifier, learned on stored embeddings without the backbone."""

from .head import fit_head
from .training import LOSSES, optimize, parameter_groups, start_projection

__all__ = ["LOSSES", "fit_head", "optimize", "parameter_groups", "start_projection"]
