"""Losses over the batches of several processes and over remembered rows."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.distributed
from dissim_retrieval.distributed import gather, gather_references
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.interop import PMLLoss, ScoreDistance
from dissim_retrieval.losses import (
    HingeLoss,
    InfoNCELoss,
    NCALoss,
    PrototypeLoss,
    SoftMarginLoss,
    SupConLoss,
)
from dissim_retrieval.memory import CrossBatchMemory
from dissim_retrieval.references import References
from dissim_retrieval.triplet import TripletLoss
from forked import run_processes
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS, WARMUP, BATCH, DIM, REMEMBERED = 20, 8, 24, 8, 50
LOSSES = {
    "hinge": HingeLoss,
    "hinge, all pairs": lambda head: HingeLoss(head, num_hard_negatives=None, balance="pairs"),
    "soft margin": SoftMarginLoss,
    "InfoNCE": InfoNCELoss,
    "SupCon": SupConLoss,
    "NCA": NCALoss,
    "prototypes": lambda head: PrototypeLoss(head, 7),
    "triplet": lambda head: TripletLoss(),
    "PML": lambda head: PMLLoss(
        ContrastiveLoss(pos_margin=1, neg_margin=-1, distance=ScoreDistance(head)), MultiSimilarityMiner()
    ),
}


class Net(nn.Module):
    """A network without batch statistics, and its loss."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, DIM))
        self.loss = LOSSES[name](DissimilarityHead(DIM))
        self.double()

    def forward(self, images, labels, memory):
        embeddings = self.backbone(images)
        references = gather_references(embeddings, labels)
        if memory is not None:
            references = memory.extend(references)
        return self.loss(embeddings, labels, references), references


def whole_batch(step):
    """Random labels: the numbers of positive pairs differ between the parts of the batch."""
    draw = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 6, generator=draw).double(), torch.randint(7, (BATCH,), generator=draw)


def trained(name, rank=0, processes=1):
    """20 steps, with remembered rows after the first 8. The mean losses, the last weights, and the memory."""
    net = Net(name)
    model = net if processes == 1 else DistributedDataParallel(net)
    memory = CrossBatchMemory(REMEMBERED, DIM).double()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    part, values = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes), []
    for step in range(STEPS):
        images, labels = whole_batch(step)
        value, references = model(images[part], labels[part], memory if step >= WARMUP else None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        memory.add(references)
        values.append(gather(value.detach()[None]).mean())
    return [torch.stack(values), *net.state_dict().values(), memory.rows, memory.labels.double()]


def train_on(rank, processes, folder):
    """One process: all runs, with a check that every process has the same weights and memory."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store{processes}", rank=rank, world_size=processes
    )
    found = {name: trained(name, rank, processes) for name in LOSSES}
    for name, tensors in found.items():
        for tensor in tensors:
            copies = gather(tensor.detach()[None].contiguous())
            assert (copies == copies[0]).all(), name
    with pytest.raises(ValueError, match="embeddings: expected the same shape on every process, got"):
        gather_references(torch.zeros(2 + rank, 3), torch.zeros(2 + rank, dtype=torch.int64))
    if rank == 0:
        torch.save(found, f"{folder}/{processes}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results of 1, 2 and 4 processes."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name need not have an address
        for processes in (2, 4):
            run_processes(train_on, (processes, folder), processes)
    several = {processes: torch.load(folder / f"{processes}.pt") for processes in (2, 4)}
    return {1: {name: trained(name) for name in LOSSES}} | several


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_several_processes_train_as_one(runs, name, processes):
    one, several = runs[1][name], runs[processes][name]
    untrained = Net(name)
    assert not torch.equal(one[1], next(untrained.parameters()))
    for expected, found in zip(one, several, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_have_the_gradients_of_the_whole(name):
    """Without processes: the mean over parts of the batch, each against all rows, in value and gradients."""
    net, (images, labels) = Net(name), whole_batch(0)
    found = []
    for parts in (1, 3):
        rows = net.backbone(images).detach().requires_grad_()
        values = [
            net.loss(rows[part], labels[part], References(rows, labels, part.start))
            for part in (slice(start, start + BATCH // parts) for start in range(0, BATCH, BATCH // parts))
        ]
        value = sum(values) / parts
        parameters = [rows, *net.loss.parameters()]
        found.append((value, *torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_memory_keeps_the_last_rows_in_a_ring():
    memory, added = CrossBatchMemory(5, 2), torch.arange(18.0).view(9, 2)
    for part in added.split(2):
        memory.add(References(part, part[:, 0].long()))
        assert len(memory) == min(5, int(part[-1, 0]) // 2 + 1)
    assert torch.equal(memory.rows.sort(0).values, added[-5:])
    assert torch.equal(memory.labels, memory.rows[:, 0].long())
    memory.add(References(added, added[:, 0].long()))  # more rows at once than are kept
    assert torch.equal(memory.rows.sort(0).values, added[-5:])


def test_memory_is_saved_and_restored():
    memory, copied = CrossBatchMemory(5, 2), CrossBatchMemory(5, 2)
    memory.add(References(torch.randn(3, 2), torch.arange(3)))
    copied.load_state_dict(copy.deepcopy(memory.state_dict()))
    for one in (memory, copied):
        one.add(References(torch.ones(3, 2), torch.arange(3)))
    assert len(copied) == 5 and torch.equal(copied.rows, memory.rows)


def test_memory_gets_no_gradient_and_may_change_before_backward():
    head, memory = DissimilarityHead(4), CrossBatchMemory(6, 4)
    memory.add(References(torch.randn(6, 4), torch.arange(6)))
    found = []
    for add in (False, True):
        rows = torch.eye(4, requires_grad=True)
        references = copy.deepcopy(memory).extend(References(rows, torch.arange(4)))
        value = NCALoss(head)(rows, torch.arange(4) // 2, references)
        if add:
            references.memory.zero_()
        value.backward()
        found.append(rows.grad)
    assert torch.equal(*found) and memory.rows.grad is None


MEASURE = """
import torch
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.losses import HingeLoss, InfoNCELoss, NCALoss, SoftMarginLoss, SupConLoss
from dissim_retrieval.memory import CrossBatchMemory
from dissim_retrieval.references import References
from dissim_retrieval.triplet import TripletLoss

def resident(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

head, memory = DissimilarityHead(32), CrossBatchMemory(65536, 32)
memory.add(References(torch.randn(65536, 32), torch.arange(65536) // 8))
rows, labels = torch.randn(1024, 32, requires_grad=True), torch.arange(1024) // 4
for kind in (HingeLoss, SoftMarginLoss, InfoNCELoss, SupConLoss, NCALoss):
    kind(head)(rows[:8], labels[:8]).backward()
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
    before = resident("VmRSS")
    kind(head)(rows, labels, memory.extend(References(rows, labels))).backward()
    print(kind.__name__, resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_losses_over_65536_remembered_rows_form_no_matrix_of_floats():
    """Loss and backward of 1,024 rows take less than half of the 256 MiB of a float32 matrix of scores."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    taken = {name: int(size) for name, size in map(str.split, done.stdout.splitlines())}
    assert len(taken) == 5 and max(taken.values()) < 1024 * 65536 * 4 / 2, taken


def test_references_that_do_not_fit_are_named():
    rows, labels = torch.randn(4, 8), torch.arange(4)
    with pytest.raises(ValueError, match=r"embeddings: expected rows \[B, 8\] with labels \[B\], got \[4, 8\] with"):
        References(rows, labels[:3])
    with pytest.raises(ValueError, match=r"memory: expected rows \[B, 8\] with labels \[B\], got \[2, 5\]"):
        References(rows, labels, memory=torch.zeros(2, 5), memory_labels=labels[:2])
    with pytest.raises(ValueError, match="memory_labels: expected both memory and memory_labels, or neither"):
        References(rows, labels, memory=rows)
    with pytest.raises(ValueError, match="references: expected the batch's 4 rows among their 4, from row 1"):
        NCALoss(DissimilarityHead(8))(rows, labels, References(rows, labels, first_row=1))
    six = torch.randn(6, 8)
    with pytest.raises(ValueError, match=r"references: expected a multiple of the batch's 4 rows, .* got 6"):
        NCALoss(DissimilarityHead(8))(six[:4], labels, References(six, torch.arange(6)))


def test_memory_names_what_does_not_fit():
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        CrossBatchMemory(0, 4)
    with pytest.raises(ValueError, match=r"references: expected embeddings \[B, 4\], got \[2, 3\]"):
        CrossBatchMemory(2, 4).add(References(torch.zeros(2, 3), torch.arange(2)))
