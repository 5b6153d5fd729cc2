"""Kill processes that write to an index at random moments, and check that nothing acknowledged is lost."""

import itertools
import multiprocessing
import time

import numpy as np
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from index_model import Model, check_search, drawn_writes, write_until_killed

CONTEXT = multiprocessing.get_context("forkserver")  # a process starts fast, because it has imported these:
CONTEXT.set_forkserver_preload(["torch", "dissim_retrieval"])


def error_in_a_process(function, *arguments):
    """What function(*arguments) raises in a process of its own: "Type: message"; None if it returns."""
    errors, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_send_error, args=(sender, function, *arguments))
    process.start()
    sender.close()
    error = errors.recv()
    process.join()
    return error


def _send_error(sender, function, *arguments):
    try:
        function(*arguments)
        sender.send(None)
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


def kill_at_random_moments(path, kills, seed=0, **options):
    """Each process goes on with the writes of the one before. Returns the number of writes that were applied.

    options: of DissimilarityIndex.open.
    """
    DissimilarityIndex.create(path, DissimilarityHead(5))
    rng, model, applied = np.random.default_rng(seed), Model(5), 0
    writes = drawn_writes(seed, 5)
    for _ in range(kills):
        acknowledged, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=write_until_killed, args=(path, seed, applied, sender, options))
        process.start()
        sender.close()
        assert acknowledged.poll(60)  # the first write is done
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        done = count_bytes(acknowledged)
        index = DissimilarityIndex.open(path, verify=True, **options)
        for write in itertools.islice(writes, done):
            model.apply(write)
        applied += done
        if not model.matches(index):  # then the write that was under way is there, and it is whole
            model.apply(next(writes))
            applied += 1
            assert model.matches(index)
        check_search(index, model, torch.randn(2, 5), k=5)
    return applied


def count_bytes(connection):
    with open(connection.fileno(), "rb", closefd=False) as file:
        return len(file.read())
