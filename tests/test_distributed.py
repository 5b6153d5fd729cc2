"""A module with the head and its loss: compiled in one graph, and trained in two processes by DDP and FSDP."""

import torch
import torch.distributed
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.losses import HingeLoss
from forked import run_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """An embedding, the head and its loss, used together and within checkpoints."""

    def __init__(self, checkpointed=True):
        super().__init__()
        self.checkpointed = checkpointed
        torch.manual_seed(0)
        self.backbone = nn.Linear(6, 8, bias=False)
        head = DissimilarityHead(8, constraint="penalty", radius=0.5)
        self.loss = HingeLoss(head, num_hard_negatives=2, balance="pairs")

    def forward(self, images, labels):
        rows = self.call(self.backbone, images)
        scores = self.call(self.loss.head, rows, rows)
        return self.call(self.loss, rows, labels) + scores.square().mean()

    def call(self, module, *arguments):
        return checkpoint(module, *arguments, use_reentrant=False) if self.checkpointed else module(*arguments)


def batch(rank):
    return torch.randn(10, 6, generator=torch.Generator().manual_seed(rank)), torch.arange(10) % 3


def gradients(net):
    net(*batch(0)).backward()
    return [x.grad for x in net.parameters()]


def test_checkpoints_change_no_gradient():
    assert all(map(torch.equal, gradients(Net()), gradients(Net(checkpointed=False))))


def test_compiled_in_one_graph():
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled), gradients(Net()))


def train_step_of_rank(rank, folder):
    """One of two processes: DDP, then FSDP. Rank 0 saves the gradients."""
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
    torch.optim.SGD(net.parameters(), lr=0.0).step()  # its hook constrains the head
    grads["norm"] = [head.weight.full_tensor().norm()]
    if rank == 0:
        torch.save(grads, f"{folder}/grads.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_mean_of_their_gradients(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name need not have an address
    run_processes(train_step_of_rank, (tmp_path,), 2)
    net = Net()
    (sum(net(*batch(rank)) for rank in range(2)) / 2).backward()
    expected, grads = [x.grad for x in net.parameters()], torch.load(tmp_path / "grads.pt")
    torch.testing.assert_close(grads["DDP"], expected)
    torch.testing.assert_close(grads["FSDP"], expected)
    torch.testing.assert_close(grads["norm"], [torch.tensor(0.5)])
