"""A method of your own in one file: a learned gate on each output channel of chosen layers.

autopeft search --space examples/own_method_space.yaml

The file travels to every worker as text, also to other machines, so it imports autopeft, torch and
installed packages, and no file of yours. ``autopeft.testing.check_method`` checks its contract.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autopeft.methods.method import Injection, Method, Rate, number


@dataclass(frozen=True)
class Gate(Method):
    """Each output channel of a layer is scaled by 1 + r tanh(g / r), r = reach; only g trains.

    A relative of IA3, on every layer of a block and bounded: with few patients no channel can run
    away. g starts at zero, so a fresh adapter changes nothing.

    Attributes:
        reach: the most by which a channel is scaled up or down.
    """

    name: ClassVar[str] = "gate"
    family: ClassVar[str] = "scale"
    paper: ClassVar[str] = "after Liu et al. 2022, arXiv:2205.05638"
    summary: ClassVar[str] = "Scales the output channels of chosen layers, within bounds."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": Rate(5e-3, 5e-4, 5e-2)}
    takes_modules: ClassVar[bool] = True  # a space may say: modules: {choices: [qkv, all]}
    wraps: ClassVar[bool] = True  # `inject` puts modules of its own in place of the network's
    exclusive: ClassVar[bool] = True  # and another method would not find them in there

    reach: float = number(0.5, 0.1, 1.0)  # default, lowest, highest

    def parameter_count(self, facts, stratum, readout) -> int:
        """One number for each output of each layer."""
        shapes = [
            facts.modules[name][block]
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1)
            for name in stratum.modules
        ]
        return sum(shape[1] for shape in shapes if shape)  # () where a block lacks the layer

    @classmethod
    def inject(cls, network, strata: Sequence, readout) -> Injection:
        """Puts a gate behind each chosen layer of a fork of the network."""
        trainable = {}
        for stratum in strata:
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                for name in stratum.modules:
                    if network.facts.modules[name][block]:
                        path = network.module_path(block, name)
                        gated = Gated(network.model.get_submodule(path), stratum.options["reach"])
                        network.model.set_submodule(path, gated)
                        # Named by the layer's own path: it tells the block that the number is in.
                        trainable[f"{path}.gate"] = gated.gate
        return Injection(trainable)

    @classmethod
    def fold(cls, network) -> None:
        """Multiplies each gate into its layer, for a plain timm state dict."""
        for path, module in list(network.model.named_modules()):
            if isinstance(module, Gated):
                network.model.set_submodule(path, module.folded())


class Gated(nn.Module):
    """A layer (linear or convolution) whose output channels are scaled."""

    def __init__(self, layer: nn.Module, reach: float) -> None:
        super().__init__()
        self.layer, self.reach = layer, reach
        outputs, like = layer.weight.shape[0], layer.weight
        self.gate = nn.Parameter(torch.zeros(outputs, device=like.device))

    def scale(self) -> Tensor:
        """Factors [outputs]; 1 at the start."""
        return 1 + self.reach * torch.tanh(self.gate / self.reach)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives, scaled: channels are last, or first after the batch."""
        y = self.layer(x)
        scale = self.scale().to(y.dtype)
        return y * (scale.view(-1, 1, 1) if isinstance(self.layer, nn.Conv2d) else scale)

    def folded(self) -> nn.Module:
        """The layer alone with the gate in its weights; new tensors, as the old are shared."""
        with torch.no_grad():
            scale = self.scale()
            each = scale.view(-1, *[1] * (self.layer.weight.ndim - 1))
            self.layer.weight = nn.Parameter(self.layer.weight * each)
            if self.layer.bias is not None:
                self.layer.bias = nn.Parameter(self.layer.bias * scale)
        return self.layer
