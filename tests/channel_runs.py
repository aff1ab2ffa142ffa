"""A small net with every coupling, a latency table made by hand, and short runs over both: for the tests of channel sparsity."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekern.algorithms import build
from sparsekern.sparsity.latency import Entry, LatencyTable, fingerprint
from sparsekern.testing import toy_batch

SHAPE = (3, 8, 8)                       # of toy_batch's images


class Small(nn.Module):
    """A stem, a residual block behind a projection, a depthwise convolution, and a flattened map under two linear layers."""

    def __init__(self, classes: int = 4):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(SHAPE[0], 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.skip = nn.Conv2d(8, 12, 1)
        self.depthwise, self.bn3 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.hidden, self.out = nn.Linear(12 * 4, 16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.skip(x))
        x = F.relu(self.bn3(self.depthwise(x)))
        return self.out(F.relu(self.hidden(F.adaptive_avg_pool2d(x, 2).flatten(1))))


def hand_table(model: nn.Module, path=None, shape=SHAPE) -> LatencyTable:
    """A millisecond for every 1000 weights, straight down to nothing, and half a millisecond for the rest."""
    layers, entries = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            c_in, c_out = (module.in_channels, module.out_channels) if isinstance(module, nn.Conv2d) else (module.in_features, module.out_features)
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
            layers[name] = name, (c_in, c_out)
            entries[name] = Entry(None if depthwise else (c_in,), (c_out,), ((module.weight.numel() / 1000,),))
    table = LatencyTable(fingerprint(model, 32, shape, "cpu"), layers, entries, 0.5)
    if path is not None:
        table.save(path)
    return table


def make(path, algorithm: str = "iee", momentum: float = 0.9, net=None, optimizer=None, **fields):
    """(net, optimizer, sparsifier) on the hand-made table."""
    torch.manual_seed(3)
    net = Small() if net is None else net
    hand_table(net, path)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum, weight_decay=1e-3) if optimizer is None else optimizer(net)
    defaults = {"total_steps": 60, "latency": 0.55, "bundle": 2, "table": str(path)}
    defaults |= {"pattern": "channel", "h_steps": 3, "j_steps": 2, "q_steps": 3, "end": 40} if algorithm == "iee" else {}
    return net, optimizer, build(algorithm, net, optimizer, **(defaults | fields))


def backward(net: nn.Module, step: int) -> Tensor:
    images, labels = toy_batch(step, 16)
    loss = F.cross_entropy(net(images), labels)
    loss.backward()
    return loss.detach()


def train(net: nn.Module, sparsifier, steps) -> None:
    for step in steps:
        backward(net, step)
        sparsifier.step()
        net.zero_grad()
