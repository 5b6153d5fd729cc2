"""Processes for tests: forks of a server that imports torch and the package once, in place of an import in each."""

import multiprocessing

import torch

IMPORTED = ["dissim_retrieval.train", "dissim_retrieval.triplet", "kornia.augmentation"]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(IMPORTED)


def run_processes(function, arguments, count):
    """``function(rank, *arguments)`` in `count` processes. Raises if one of them fails."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=count, start_method="forkserver")
