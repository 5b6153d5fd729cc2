"""Loops in numba, parallel and with fast-math: a strong baseline that a user can write in an afternoon.

The plain triple loop, and one that keeps the sums of 4 queries x 2 references in registers and goes over blocks of
references that stay in cache. numba's LLVM vectorizes both for the machine.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from ..problem import MARGIN, Problem
from ..registry import Call, competitor

BLOCK = 256  # references: half a megabyte at D=512, in L2


@cache
def loops():
    """The compiled loops. Only this function imports numba."""
    from numba import njit, prange

    parallel = njit(parallel=True, fastmath=True)

    @parallel
    def plain(query, reference, weight, bias, scores):
        for n in prange(len(query)):
            for m in range(len(reference)):
                total = np.float32(0)
                for d in range(query.shape[1]):
                    total += weight[d] * abs(query[n, d] - reference[m, d])
                scores[n, m] = total + bias

    @njit(fastmath=True)
    def tile(query, reference, weight, bias, scores, n, m):
        """scores[n : n + 4, m : m + 2]; rows past the end repeat the last one."""
        rows, columns = len(query) - 1, len(reference) - 1
        n1, n2, n3, m1 = min(n + 1, rows), min(n + 2, rows), min(n + 3, rows), min(m + 1, columns)
        q0, q1, q2, q3, r0, r1 = query[n], query[n1], query[n2], query[n3], reference[m], reference[m1]
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
        for d in range(query.shape[1]):
            w, r, s = weight[d], r0[d], r1[d]
            a0 += w * abs(q0[d] - r)
            a1 += w * abs(q1[d] - r)
            a2 += w * abs(q2[d] - r)
            a3 += w * abs(q3[d] - r)
            b0 += w * abs(q0[d] - s)
            b1 += w * abs(q1[d] - s)
            b2 += w * abs(q2[d] - s)
            b3 += w * abs(q3[d] - s)
        scores[n, m], scores[n1, m], scores[n2, m], scores[n3, m] = a0 + bias, a1 + bias, a2 + bias, a3 + bias
        scores[n, m1], scores[n1, m1], scores[n2, m1], scores[n3, m1] = b0 + bias, b1 + bias, b2 + bias, b3 + bias

    @parallel
    def blocked(query, reference, weight, bias, scores):
        blocks = (len(reference) + BLOCK - 1) // BLOCK
        groups = (len(query) + 63) // 64
        for task in prange(blocks * groups):
            begin, first = task % groups * 64, task // groups * BLOCK
            for n in range(begin, min(begin + 64, len(query)), 4):
                for m in range(first, min(first + BLOCK, len(reference)), 2):
                    tile(query, reference, weight, bias, scores, n, m)

    @parallel
    def sign_sums(rows, others, grad, sums):
        """Sums of E2: sums[n] = sum_m grad[n, m] sgn(rows[n] - others[m])."""
        for n in prange(len(rows)):
            row, total = rows[n], sums[n]
            total[:] = 0
            for m in range(0, len(others) - 3, 4):
                g0, g1, g2, g3 = grad[n, m], grad[n, m + 1], grad[n, m + 2], grad[n, m + 3]
                o0, o1, o2, o3 = others[m], others[m + 1], others[m + 2], others[m + 3]
                for d in range(rows.shape[1]):
                    x = row[d]
                    total[d] += (
                        (g0 if x > o0[d] else -g0 if x < o0[d] else np.float32(0))
                        + (g1 if x > o1[d] else -g1 if x < o1[d] else np.float32(0))
                        + (g2 if x > o2[d] else -g2 if x < o2[d] else np.float32(0))
                        + (g3 if x > o3[d] else -g3 if x < o3[d] else np.float32(0))
                    )
            for m in range(len(others) // 4 * 4, len(others)):
                for d in range(rows.shape[1]):
                    total[d] += grad[n, m] * np.sign(row[d] - others[m, d])

    return plain, blocked, sign_sums


def _arrays(problem: Problem) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in problem.floats()]


def _score(problem: Problem, loop) -> Call:
    inputs, bias = _arrays(problem), np.float32(problem.bias)

    def score():
        scores = np.empty((len(inputs[0]), len(inputs[1])), np.float32)
        loop(*inputs, bias, scores)
        return scores

    return score


@competitor("numba, plain loop", {"score": 10}, needs=("numba",))
def _plain(problem: Problem) -> Call:
    return _score(problem, loops()[0])


@competitor("numba, 4 x 2 in registers", {"score": 20}, needs=("numba",))
def _blocked(problem: Problem) -> Call:
    return _score(problem, loops()[1])


@competitor("numba, 4 x 2, torch.topk", {"topk": 20}, needs=("numba",))
def _topk(problem: Problem) -> Call:
    score = _score(problem, loops()[1])
    return lambda: torch.from_numpy(score()).topk(problem.case.k)


def _gradients(problem: Problem):
    """A function from grad [N, M] to the gradients, by the formulas of E2."""
    (query, reference, weight), sign_sums = _arrays(problem), loops()[2]

    def gradients(grad: np.ndarray):
        query_sums, reference_sums = np.empty_like(query), np.empty_like(reference)
        sign_sums(query, reference, grad, query_sums)
        sign_sums(reference, query, np.ascontiguousarray(grad.T), reference_sums)
        grad_weight = np.einsum("nd,nd->d", query, query_sums) + np.einsum("md,md->d", reference, reference_sums)
        return query_sums * weight, reference_sums * weight, grad_weight

    return gradients


@competitor("numba, by hand (E2)", {"score_backward": 8}, needs=("numba",))
def _backward(problem: Problem) -> Call:
    gradients, grad = _gradients(problem), problem.grad.float().numpy()
    return lambda: gradients(grad)


@competitor("numba, by hand (E2)", {"score_step": 6}, needs=("numba",))
def _step(problem: Problem) -> Call:
    score, gradients, grad = _score(problem, loops()[1]), _gradients(problem), problem.grad.float().numpy()

    def step():
        score()
        return gradients(grad)

    return step


@competitor("numba, by hand (E2)", {"hinge_step": 5}, needs=("numba",))
def _hinge(problem: Problem) -> Call:
    score, gradients, p = _score(problem, loops()[1]), _gradients(problem), problem

    def step():
        signs = torch.where(p.query_labels[:, None] == p.reference_labels, 1.0, -1.0)
        violation = (MARGIN - signs * torch.from_numpy(score())).clamp_(min=0)
        grad = signs * (violation > 0) / -violation.numel()
        return violation.mean(), *gradients(grad.numpy())

    return step
