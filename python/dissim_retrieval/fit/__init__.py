"""A projection and the pair classifier, learned on stored embeddings without the backbone."""

from .head import check_features, fit_head
from .training import LOSSES, optimize, parameter_groups, start_projection

__all__ = ["LOSSES", "check_features", "fit_head", "optimize", "parameter_groups", "start_projection"]
