"""Loggers of the package: of several processes that train together, only the first one logs."""

from __future__ import annotations

import logging
import os

import torch.distributed as dist


def get_logger(name: str) -> logging.Logger:
    """The logger `name`, which is silent in all processes but the first: each would log the same lines."""
    logger = logging.getLogger(name)
    logger.addFilter(_of_first_process)
    return logger


def is_first_process() -> bool:
    """Whether this is process 0 of its process group, or will be in the one that torchrun prepared; alone: True."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def hide_bar(wanted: bool = True) -> bool | None:
    """`disable` of a tqdm bar: None, shown on a terminal only, if it is wanted and this is the first process."""
    return None if wanted and is_first_process() else True


def _of_first_process(record: logging.LogRecord) -> bool:
    return is_first_process()
