"""Short runs of Sparse Cocktail on a small net with a residual sum: for its tests."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekern import SparseCocktail
from sparsekern.testing import toy_batch

SHAPE = (3, 8, 8)
STAGES = {"total_steps": 54, "stages": 3, "stage_steps": 13, "rewind_steps": 4, "nm": "1:2,2:4", "nm_stages": [2, 3], "shape": SHAPE}   # stage 0: 15


class Block(nn.Module):
    """A dense first convolution, a block behind a projection (its two branches are coupled), a biased convolution without a norm."""

    def __init__(self, classes: int = 4):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.skip, self.bn3 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.last, self.fc = nn.Conv2d(16, 10, 1), nn.Linear(40, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.bn3(self.skip(x)))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.last(x)), 2).flatten(1))


def make(net=None, optimizer="sgd", **fields):
    torch.manual_seed(1)
    net = net or Block()
    optimizer = {"sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
                 "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-3)}[optimizer](net.parameters())
    return net, optimizer, SparseCocktail(net, optimizer, **STAGES | fields)


def train(net, sparsifier, steps):
    losses = []
    for step in steps:
        x, y = toy_batch(step, 16)
        loss = sparsifier.loss(net, x, y, F.cross_entropy)
        loss.backward()
        sparsifier.step()
        sparsifier.optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def judge(net, sparsifier, size: int = 128):
    """evaluate(name): accuracy on held-out pictures."""
    x, y = toy_batch(10_000, size)

    def evaluate(name: str) -> float:
        with sparsifier.subnet(name), torch.no_grad():
            net.eval()
            found = (net(x).argmax(1) == y).float().mean().item()
            net.train()
        return found
    return evaluate


def inputs(count: int = 4):
    """batches(): training pictures, the same ones every time."""
    return lambda: (toy_batch(step, 16)[0] for step in range(count))


def numbers(net) -> dict[str, Tensor]:
    """Copies of what the model holds now."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def banks(sparsifier) -> dict[str, dict[str, Tensor]]:
    """Copies of every sub-net's norms."""
    return {name: {key: tensor.detach().clone() for key, tensor in bank.items()} for name, bank in zip(sparsifier.subnets, sparsifier.norms.banks)}
