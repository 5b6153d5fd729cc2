"""KeOps, as shipped and with the compiler flags that suit its generated C++ best.

KeOps never stores the scores [N, M] but reduces them. Its cheapest reduction, the sum over the references, is
measured in place of the score. It compiles a formula for each D and each set of flags.
"""

from __future__ import annotations

from ..correctness import RowSums
from ..differentiate import step_of
from ..peak import ROOT
from ..problem import MARGIN, Problem
from ..registry import Call, Unavailable, competitor

FAST = "-march=native -ffast-math"
#: Compiling takes about 10 s for every formula and D, so only cases of this D are run.
DIM = 512


def scores(problem: Problem, query, reference, weight, flags: str):
    """The symbolic scores.

    KeOps caches compiled code by formula, so the order of the factors differs for different flags.
    """
    from pykeops.torch import LazyTensor

    difference = (LazyTensor(query[:, None]) - LazyTensor(reference[None])).abs()
    weight = LazyTensor(weight[None, None])
    return ((weight * difference) if flags else (difference * weight)).sum(-1) + problem.bias


def with_flags(problem: Problem, flags: str, call: Call) -> Call:
    """The call after a first run, which compiles it with `flags`."""
    if problem.case.dim != DIM or problem.case.queries == 1:
        raise Unavailable(f"not run: it compiles for each D, and only D={DIM} is compiled")
    import pykeops
    from keopscore.config import config

    pykeops.set_verbose(False)
    folder = ROOT / "build" / "keops"
    folder.mkdir(parents=True, exist_ok=True)
    if str(folder) not in str(pykeops.get_build_folder()):
        pykeops.set_build_folder(str(folder))
    before = config.cpp_env_flags
    config.cpp_env_flags = flags
    config.set_cpp_flags()
    try:
        call()
    finally:
        config.cpp_env_flags = before
        config.set_cpp_flags()
    return call


def score(problem: Problem, flags: str) -> Call:
    inputs = problem.floats()
    return with_flags(problem, flags, lambda: RowSums(scores(problem, *inputs, flags).sum(1)[:, 0]))


def topk(problem: Problem, flags: str) -> Call:
    inputs, k = problem.floats(), problem.case.k

    def search():
        found, indices = (-scores(problem, *inputs, flags)).Kmin_argKmin(k, dim=1)
        return -found, indices

    return with_flags(problem, flags, search)


def hinge_step(problem: Problem, flags: str) -> Call:
    from pykeops.torch import LazyTensor

    q_labels, r_labels = problem.query_labels.float(), problem.reference_labels.float()  # exact below 2 ** 24

    def loss(problem, query, reference, weight):
        different = (LazyTensor(q_labels[:, None, None]) - LazyTensor(r_labels[None, :, None])).abs().sign()
        violation = MARGIN - (1 - 2 * different) * scores(problem, query, reference, weight, flags)
        return violation.relu().sum(1).sum() / (len(query) * len(reference))

    return with_flags(problem, flags, step_of(problem, loss))


def register(name: str, flags: str, rates: dict[str, float], device: str = "cpu") -> None:
    calls = {"score": score, "topk": topk, "hinge_step": hinge_step}

    @competitor(name, rates, needs=("pykeops",), device=device)
    def _prepare(problem: Problem) -> Call:
        return calls[problem.case.operation](problem, flags)


register("KeOps, as shipped", "", {"score": 0.33, "topk": 0.3, "hinge_step": 0.1})
register(f"KeOps, {FAST}", FAST, {"score": 3, "topk": 3, "hinge_step": 0.3})
