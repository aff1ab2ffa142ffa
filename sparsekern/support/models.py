"""Models by name: an MLP and the CIFAR networks of the sparse training papers, and any torchvision or timm model."""
import difflib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build_model(name: str, *, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """A freshly initialised model for images of `shape` (channels, height, width).

    Args:
        name: one of `model_names()`; `mlp:300,100` sets the hidden widths; `torchvision:NAME` and `timm:NAME` take theirs.
    Raises:
        ValueError: an unknown name (says what there is), or a model that does not take images of `shape`.
    """
    family, _, detail = name.partition(":")
    if family in ("torchvision", "timm"):
        model = _torchvision(detail, classes) if family == "torchvision" else _timm(detail, classes, shape)
    elif family == "mlp":
        model = MLP(shape, classes, _widths(detail) if detail else (300, 100))
    elif name in _BUILDERS:
        model = _BUILDERS[name](classes, shape[0])
        kaiming_fan_out(model)
    else:
        raise ValueError(f"model: expected one of {', '.join(model_names())}, torchvision:NAME or timm:NAME, got {name!r}"
                         + _close(name, model_names()))
    _check_takes(model, name, shape)
    return model


_LONGEST_NAME = 256                                         # mlp:W1,W2,... builds a layer per number
MOST_VALUES = 1 << 24                                       # of one image that a file may name


def outline(facts: Mapping, tensors: Iterable[Tensor]) -> nn.Module:
    """The model that a file names, before the file is believed: without memory behind its tensors where it is one of ours.

    Args:
        facts: {"name", "classes", "shape"}, as `build_model` takes them. tensors: of the file, one of which must be large enough to have
            so many classes where memory is needed.
    Raises:
        ValueError: none of that kind, or one that asks for more than such a file can mean.
    """
    name, classes, shape = facts["name"], facts["classes"], facts["shape"]
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        raise ValueError(f"model: expected a name of at most {_LONGEST_NAME} letters")
    if not all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in (classes, *shape)) or len(shape) != 3:
        raise ValueError(f"model: expected a positive number of classes and three of a shape, got {str(classes)[:40]} and {str(shape)[:40]}")
    foreign = name.startswith(("torchvision:", "timm:"))    # not all of these can be built without memory
    if foreign and math.prod(shape) > MOST_VALUES:
        raise ValueError(f"model: expected images of at most {MOST_VALUES} values, got {str(shape)[:40]}")
    if foreign and classes > max((tensor.numel() for tensor in tensors), default=0):
        raise ValueError(f"model: {str(classes)[:40]} classes, and no tensor has as many values")
    with torch.device("cpu" if foreign else "meta"):
        return build_model(name, classes=classes, shape=tuple(shape))


def model_names() -> list[str]:
    return ["mlp", "mlp:W1,W2,...", *_BUILDERS]


def kaiming_fan_out(model: nn.Module) -> None:
    """He initialisation by fan-out for convolutions; the classifier keeps torch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class MLP(nn.Module):
    """Linear layers with ReLU between them, over the flattened image."""

    def __init__(self, shape: tuple[int, int, int], classes: int, widths: tuple[int, ...]):
        super().__init__()
        sizes = [shape[0] * shape[1] * shape[2], *widths]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.classifier = nn.Linear(sizes[-1], classes)
        for layer in self.hidden:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.classifier(x)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with batch norm, 32/64/64/128 wide, for small images."""

    def __init__(self, classes: int, channels: int):
        super().__init__()
        widths, strides = (channels, 32, 64, 64, 128), (1, 1, 2, 1)
        self.convs = nn.ModuleList(_conv(a, b, 3, s) for a, b, s in zip(widths, widths[1:], strides))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
        return self.classifier(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: a 1x1 convolution, or stride and zero channels (He et al.'s option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.stride, self.missing = stride, outputs - inputs
        self.downsample = None
        if projection and (stride != 1 or inputs != outputs):
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride != 1 or self.missing:
            before = self.missing // 2
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, before, self.missing - before))
        return F.relu(out + x)


class ResNet(nn.Module):
    """A stem of one 3x3 convolution, stages of basic blocks, mean over the image, a linear classifier."""

    def __init__(self, classes: int, channels: int, widths: tuple[int, ...], blocks: int, projection: bool):
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, widths[0], 3), nn.BatchNorm2d(widths[0])
        stages, inputs = [], widths[0]
        for index, width in enumerate(widths):
            stage = []
            for block in range(blocks):
                stage.append(BasicBlock(inputs, width, 2 if index and not block else 1, projection))
                inputs = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.stages(x).mean((2, 3)))


class WideBlock(nn.Module):
    """Pre-activation block: normalise, ReLU, convolve, twice; the shortcut branches off after the first ReLU where it projects."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs, 3)
        self.shortcut = _conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + x


class WideResNet(nn.Module):
    """Zagoruyko's WRN-depth-width: three groups of (depth - 4) / 6 pre-activation blocks."""

    def __init__(self, classes: int, channels: int, depth: int, width: int):
        super().__init__()
        self.conv1 = _conv(channels, 16, 3)
        blocks, inputs = [], 16
        for group, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range((depth - 4) // 6):
                blocks.append(WideBlock(inputs, outputs, 2 if group and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class VGG(nn.Module):
    """Simonyan and Zisserman's VGG-11 for small images: 3x3 convolutions with batch norm, pooling between, one linear classifier."""

    def __init__(self, classes: int, channels: int, widths: tuple[int | str, ...] = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512)):
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            if width == "M":
                layers.append(nn.MaxPool2d(2, ceil_mode=True))             # images below 16 pixels pass, too
            else:
                layers += [_conv(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV1(nn.Module):
    """Howard et al.'s MobileNet with a stem of stride 1, for small images: depthwise 3x3 and pointwise 1x1 convolutions in turn."""

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.stem = nn.Sequential(_conv(channels, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        widths = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
        blocks = []
        for inputs, outputs in zip(widths, widths[1:]):
            stride = 2 if outputs > inputs > 32 else 1
            depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
            blocks.append(nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.ReLU(), _conv(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU()))
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


_BUILDERS = {
    "small_cnn": SmallCNN,
    "resnet20": lambda classes, channels: ResNet(classes, channels, (16, 32, 64), 3, projection=False),
    "resnet20-b": lambda classes, channels: ResNet(classes, channels, (16, 32, 64), 3, projection=True),
    "resnet32": lambda classes, channels: ResNet(classes, channels, (16, 32, 64), 5, projection=False),
    "resnet56": lambda classes, channels: ResNet(classes, channels, (16, 32, 64), 9, projection=False),
    "wrn32-ast": lambda classes, channels: ResNet(classes, channels, (32, 64, 128), 5, projection=True),
    "resnet18": lambda classes, channels: ResNet(classes, channels, (64, 128, 256, 512), 2, projection=True),
    "wrn-22-2": lambda classes, channels: WideResNet(classes, channels, 22, 2),
    "vgg11": VGG,
    "mobilenet-v1": MobileNetV1,
}


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = (0,)
    if min(widths) < 1:
        raise ValueError(f"model: mlp: expected positive hidden widths such as mlp:300,100, got {text!r}")
    return widths


def _close(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _torchvision(name: str, classes: int) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise ValueError(f"model: torchvision:{name} needs torchvision: pip install torchvision") from error
    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(f"model: torchvision has no classifier {name!r}" + _close(name, names) + " See torchvision.models.list_models()")
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if extra:
        extra["aux_logits"] = False
    return models.get_model(name, weights=None, num_classes=classes, **extra)


def _timm(name: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"model: timm:{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        raise ValueError(f"model: timm has no model {name!r}" + _close(name, timm.list_models()) + " See timm.list_models()")
    options = {"pretrained": False, "num_classes": classes, "in_chans": shape[0]}
    try:
        return timm.create_model(name, img_size=shape[1:], **options)          # transformers fix their image size
    except TypeError:
        return timm.create_model(name, **options)


def _check_takes(model: nn.Module, name: str, shape: tuple[int, int, int]) -> None:
    """One black image through the model, so that a mismatch is a sentence now and not a traceback in the first step."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"model: {name} does not take images of shape {list(shape)}: {first}") from error
    finally:
        model.train(was_training)
