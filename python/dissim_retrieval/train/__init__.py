"""Training of a backbone and its pair classifier: seeded, resumable, with validation."""

from .batches import IdentityBatches
from .config import TrainConfig
from .loop import train
from .trained import Trained, load_trained

__all__ = ["IdentityBatches", "TrainConfig", "Trained", "load_trained", "train"]
