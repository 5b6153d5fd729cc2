"""Training as it is done: checkpointing, saved tensors, repeated backward, hooks, compiled modules, two processes."""

import pytest
import torch
import torch.distributed
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.losses import HingeLoss
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from dissim_kernels import fused_dissim_hinge_loss, fused_dissim_score, paired_dissim_score
from dissim_kernels import testing as judge

INPUTS = judge.random_inputs((12, 5), (18, 5), seed=3)
SIDES = (torch.arange(12) % 4, torch.arange(18) % 4)
HEAD = DissimilarityHead(5)


def hinge(*arguments):
    return fused_dissim_hinge_loss(*arguments, *SIDES)


#: Each a function of query, reference, weight and bias.
FUNCTIONS = {
    "score": lambda q, r, w, b: fused_dissim_score(q, r, w, b).square().sum(),
    "score with itself": lambda q, r, w, b: fused_dissim_score(x := q * r[:12], x, w, b).square().sum(),
    "paired": lambda q, r, w, b: paired_dissim_score(q, r[:12], w, b).square().sum(),
    "hinge": hinge,
    "hinge with itself": lambda q, r, w, b: fused_dissim_hinge_loss(x := q * r[:12], x, w, b, SIDES[0], SIDES[0]),
    "head": lambda q, r, w, b: HEAD(q, r * w + b).square().sum(),
    "HingeLoss": lambda q, r, w, b: HingeLoss(HEAD)(q * w + r[:12] * b, SIDES[0]),
}
functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def leaves(needs=(True,) * 4):
    return [x.clone().requires_grad_(needed) for x, needed in zip(INPUTS, needs, strict=True)]


def gradients(run, backward=torch.Tensor.backward):
    arguments = leaves()
    backward(run(*arguments))
    return [x.grad for x in arguments]


def in_checkpoint(function):
    return lambda *arguments: checkpoint(function, *arguments, use_reentrant=False)


def in_bfloat16(function):
    def run(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*arguments)

    return run


def on_cpu(function):
    def run(*arguments):
        with save_on_cpu():
            return function(*arguments)

    return run


@functions
@pytest.mark.parametrize(
    "wrap",
    [in_checkpoint, on_cpu, lambda f: in_bfloat16(in_checkpoint(f)), lambda f: in_checkpoint(in_bfloat16(f)),
     lambda f: in_checkpoint(in_checkpoint(f))],
    ids=["checkpoint", "save_on_cpu", "autocast of checkpoint", "checkpoint of autocast", "checkpoint of checkpoint"],
)  # fmt: skip
def test_saved_or_computed_again_the_gradients_are_the_same(wrap, function):
    assert all(map(torch.equal, gradients(wrap(function)), gradients(function)))


def test_second_derivatives_within_a_checkpoint():
    def second(function):
        arguments = leaves()
        first = torch.autograd.grad(function(*arguments), arguments, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), arguments)

    score = FUNCTIONS["score"]
    torch.testing.assert_close(second(in_checkpoint(score)), second(score))
    with pytest.raises(NotImplementedError, match="fused_dissim_hinge_loss: a second derivative is not available"):
        second(in_checkpoint(hinge))


def saved_by(function, needs):
    """Shapes of the tensors that autograd keeps for backward, of more than one element."""
    shapes = []

    def pack(x):
        shapes.append(tuple(x.shape))
        return x

    arguments = leaves(needs)
    with saved_tensors_hooks(pack, lambda x: x):
        function(*arguments)
    return [shape for shape in shapes if shape]


ROWS, LABELS = [(12, 5), (18, 5), (5,)], [(12,), (18,), (12, 3)]
BATCHED = [(1, 12, 5), (1, 18, 5), (1, 5)]


@pytest.mark.parametrize(
    ("function", "needs", "expected"),
    [
        (fused_dissim_score, (True, True, True, True), BATCHED),
        (fused_dissim_score, (True, False, False, False), BATCHED),
        (fused_dissim_score, (False, False, False, True), []),
        (fused_dissim_score, (False, False, False, False), []),
        (lambda q, r, w, b: fused_dissim_score(q, q, w, b), (True, True, True, True), [(1, 12, 5), (1, 5)]),
        (hinge, (True, True, True, True), ROWS + LABELS),
        (hinge, (False, False, False, False), []),
        (
            lambda q, r, w, b: fused_dissim_hinge_loss(q, q, w, b, SIDES[0], SIDES[0]),
            (True, True, True, True),
            [(12, 5), (5,), (12,), (12, 2)],
        ),
    ],
)
def test_backward_keeps_what_it_needs_and_nothing_twice(function, needs, expected):
    assert saved_by(function, needs) == expected


@functions
def test_gradients_add_up_and_a_graph_may_be_kept(function):
    def twice(loss):
        loss.backward(retain_graph=True)
        loss.backward()

    once, both = gradients(function), gradients(function, twice)
    assert all(torch.equal(2 * a, b) for a, b in zip(once, both, strict=True))


def test_hooks_may_replace_gradients():
    def hooked(score):
        arguments = leaves()
        scores = score(*arguments)
        scores.register_hook(lambda grad: grad.flip(0).T.contiguous().T)
        scores.square().sum().backward()
        return [x.grad for x in arguments]

    torch.testing.assert_close(hooked(fused_dissim_score), hooked(judge.plain_score))


class Net(nn.Module):
    """An embedding, the head and its loss, used together."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(6, 8, bias=False)
        head = DissimilarityHead(8, constraint="penalty", radius=0.5)
        self.loss = HingeLoss(head, hard_negatives=2, balance="pairs")

    def forward(self, images, labels):
        rows = checkpoint(self.backbone, images, use_reentrant=False)
        scores = checkpoint(self.loss.head, rows, rows, use_reentrant=False)
        return self.loss(rows, labels) + scores.square().mean()


def batch(rank):
    return torch.randn(10, 6, generator=torch.Generator().manual_seed(rank)), torch.arange(10) % 3


def test_a_compiled_module_with_head_and_loss_in_one_graph():
    grads = []
    for run in (lambda net: net, lambda net: torch.compile(net, backend="aot_eager", fullgraph=True)):
        net = Net()
        run(net)(*batch(0)).backward()
        grads.append([x.grad for x in net.parameters()])
    torch.testing.assert_close(*grads)


def train_step_of_rank(rank, folder):
    """DDP, then FSDP, in one of two processes; the first writes the gradients down."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = Net()
    replica = DistributedDataParallel(net)
    replica(*batch(rank)).backward()
    grads = {"DDP": [x.grad for x in net.parameters()]}
    net, mesh = Net(), init_device_mesh("cpu", (2,))
    for module in (net.backbone, net):
        fully_shard(module, mesh=mesh)
    net(*batch(rank)).backward()
    grads["FSDP"] = [x.grad.full_tensor() for x in net.parameters()]
    head = net.loss.head
    head.constraint, head.sign = "project", "negative"
    head.constrain_()
    grads["norm"] = [head.weight.full_tensor().norm()]
    if rank == 0:
        torch.save(grads, f"{folder}/grads.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_mean_of_their_gradients(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name need not have an address
    torch.multiprocessing.spawn(train_step_of_rank, (tmp_path,), nprocs=2)
    net = Net()
    (sum(net(*batch(rank)) for rank in range(2)) / 2).backward()
    expected, grads = [x.grad for x in net.parameters()], torch.load(tmp_path / "grads.pt")
    torch.testing.assert_close(grads["DDP"], expected)
    torch.testing.assert_close(grads["FSDP"], expected)
    torch.testing.assert_close(grads["norm"], [torch.tensor(0.5)])
