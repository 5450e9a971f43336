"""What a search needs to know about a backbone, without torch: depth, widths, modules, input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Pool = Literal["token", "avg", "token+avg"]
Family = Literal["vit", "cnn"]


@dataclass(frozen=True)
class Facts:
    """A backbone as plain data. L is its depth; boundary b is the state after b blocks.

    Attributes:
        name: timm name, with the pretrained tag if one was given.
        family: ``vit`` (token states, B x N x D) or ``cnn`` (map states, B x C x H x W).
        depth: number of blocks L. A CNN's residual blocks are counted over all its stages.
        dims: length of a pooled vector at the boundaries 0..L (``token+avg`` is twice as long).
        shapes: shape of a state at the boundaries 0..L, without the batch dimension.
        modules: for each module name, (fan in, outputs) in each block, ``()`` where a block lacks
            it. ViT: ``qkv``, ``proj``, ``fc1``, ``fc2``. CNN: the family's own names of its
            linears and its convolutions with one group (ResNet ``conv1`` .. ``conv3``, ConvNeXt
            ``fc1``, ``fc2``, EfficientNet ``conv_pw``, ``conv_pwl``, ``conv_exp``);
            squeeze-excitation and shortcuts are never targets. The fan in of a convolution counts
            its kernel, so rank r costs ``r * (fan in + outputs)``.
        paths: for each module name, its path in the timm model in each block, ``""`` where absent.
            It, ``kernels`` and ``module_biases`` hold the grouped ones too.
        kernels: for each module name, the side of its kernel in each block; 0 for a linear one and
            where it is absent.
        norms: for each block, path -> numbers in the weight and bias of each norm in it.
        norm_biases: for each block, numbers in the biases of its norms.
        module_biases: for each module name, numbers in its bias in each block.
        grouped: as ``modules``, convolutions of several groups (depthwise ``conv_dw``), which few
            methods take; the fan in is that of one group.
        heads: attention heads of a ViT, 0 for a CNN.
        prefixes: for each block the module paths that it consists of, in the order they run.
        pools: the pools that exist; a CNN and a ViT without class token have ``avg`` only.
        own_pool: timm's own pool, i.e. what the pretrained head reads at boundary L.
        classifier: path of timm's classifier (``head``, ``fc``, ``head.fc``, ``classifier``).
        image_size: side of the square input in pixels, as the model was built.
        patch: side of a patch, None for a CNN.
        mean: channel means of the input, for pixels in 0..1.
        std: channel standard deviations of the input.
        interpolation: how the pretraining resized images.
        block_params: number of parameters of each block.
        block_biases: number of numbers in the biases of each block.
        stem_params: parameters before block 0, embeddings and tokens included.
        stem_biases: numbers in the biases before block 0.
        tail_params: parameters behind the last block, classifier excluded.
        tail_biases: numbers in the biases behind the last block, classifier excluded.
        sha256: over names, shapes and bytes of all tensors but the classifier's.
    """

    name: str
    family: Family
    depth: int
    dims: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    modules: Mapping[str, tuple[tuple[int, ...], ...]]
    paths: Mapping[str, tuple[str, ...]]
    prefixes: tuple[tuple[str, ...], ...]
    pools: tuple[Pool, ...]
    own_pool: Pool
    classifier: str
    image_size: int
    patch: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    block_params: tuple[int, ...]
    block_biases: tuple[int, ...]
    stem_params: int
    stem_biases: int
    tail_params: int
    tail_biases: int
    sha256: str
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    norms: tuple[Mapping[str, int], ...] = ()
    norm_biases: tuple[int, ...] = ()
    module_biases: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    heads: int = 0
    grouped: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @property
    def params(self) -> int:
        """Parameters of the frozen network, classifier excluded."""
        return self.stem_params + sum(self.block_params) + self.tail_params

    def width(self, block: int, pool: Pool) -> int:
        """Length of the vector that a head reads at boundary ``block`` with ``pool``."""
        return self.dims[block] * (2 if pool == "token+avg" else 1)

    def is_own_readout(self, block: int, pool: Pool) -> bool:
        """Whether the readout is timm's own, so that timm's classifier serves as head."""
        return block == self.depth and pool == self.own_pool

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Facts:
        """Reads back ``to_dict``, also after a trip through JSON."""
        plain = {k: _tuples(v) for k, v in value.items()}
        return Facts(**plain)


def _tuples(value: Any) -> Any:
    """Lists, which JSON makes of tuples, become tuples again."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
