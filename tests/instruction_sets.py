"""The instruction sets of this machine, and the tests of the operators run with one of them in a new process."""

import os
import subprocess
import sys
from pathlib import Path

import torch

import dissim_kernels

PACKAGE = Path(dissim_kernels.__file__).parent
TESTS = Path(__file__).parent
SETS = torch.ops.dissim_native.isas().split()
HERE = [name for name in SETS if not name.startswith("[")]
#: New heap memory has bytes of 0x7f, a huge number or NaN in every format, so that unwritten scratch is found.
POISON = {"MALLOC_PERTURB_": "128"}


def run(*arguments, root=PACKAGE.parent, **environment):
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", **environment}
    return subprocess.run(
        [sys.executable, *arguments], env=settings, cwd=root, capture_output=True, text=True, timeout=300
    )


def check_operators(name):
    """Scores and gradients of edge-case inputs, all options of the hinge loss, top-k of ties, codes."""
    selected = "((the_definition or ties or gradients or ranks) and cpu)"
    selected += " or (clusters and (few_rows or bounds or ties))"
    selected += " or (quantized_topk and (ties or every or edge_case or filters))"
    files = [str(TESTS / f"test_{stem}.py") for stem in ("score", "topk", "hinge", "quantized_topk", "clusters")]
    files += [str(TESTS / f"test_{stem}.py") for stem in ("logsumexp", "rank")]
    script = (
        "import sys, pytest, torch, dissim_kernels\nprint(torch.ops.dissim_native.isa())\nsys.exit(pytest.main())"
    )
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-k", selected, *files]
    done = run("-c", script, *arguments, DISSIM_ISA=name, **POISON)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.startswith(name + "\n") and done.stdout.count(".") > 100
