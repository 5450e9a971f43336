"""Layers whose weight is W + scatter(places, values): the engine below every sparse method.

A layer becomes a subclass of its own class, so names, types for ``isinstance`` and the frozen
weight stay. Several sparse methods may share one layer: their values add up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from autopeft.backbones.network import Network

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
# On a CPU in fp32, products of single columns beat the whole matrix product up to about one entry
# in 55 (2,080 tokens, widths 384 to 1,536: 3 ms against 19 at one in 370); in bf16 they never do.
FEW = 100
COLUMNS = 1024  # at once, so that what is gathered stays small
FEW_TILES = 32  # products of single tiles beat it up to one entry in so many, in bf16 too

Tiles = tuple[Tensor, Tensor, Tensor]  # rows and columns of tiles [n], order of their entries


class _Plain:
    """The frozen fp32 weight as it was, and W' in the type of the activations.

    Not a module's attribute by itself, so that a fork shares the former and never the latter.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.moved: Tensor | None = None
        self.key: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Plain:
        return _Plain(self.weight)


class SparseLayer(nn.Module):
    """Mixed into the class of a linear or convolutional layer; see ``open_entries``.

    The entries that change are written over a copy of the frozen weight that lives as long as the
    layer, so that a step costs as many writes as there are entries, and each is rounded once:
    bf16(W + v), not bf16(bf16(W) + v).
    """

    sparse_methods: tuple[str, ...] = ()
    places: Tensor  # of all methods together, ascending, flat
    start: Tensor  # W there, fp32
    plain: _Plain
    tile: int = 0  # side of the tiles that the places fill, 0 if they fill none
    tiles: Tiles | None

    def values(self) -> Tensor:
        """The changed entries of W', fp32, in the order of ``places``."""
        if self._indexed() != self.indexed:
            self._index()  # other places were loaded
        total = self.start
        for method in self.sparse_methods:
            value: Tensor = getattr(self, f"{method}_value")
            into = getattr(self, f"{method}_into")
            total = total + value if into is None else total.index_add(0, into, value)
        return total

    def shifted_bias(self) -> Tensor | None:
        """The bias with what sparse methods add to it."""
        bias: Tensor | None = self.bias  # type: ignore[assignment]
        for method in self.sparse_methods:
            if hasattr(self, f"{method}_bias"):
                bias = getattr(self, f"{method}_bias") + bias
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """The layer with W' in the place of W."""
        plain_forward: Any = super().forward
        if not self.sparse_methods:  # peft makes layers of the class that it finds
            return plain_forward(x)  # type: ignore[no-any-return]
        if type(self).__bases__[-1] is nn.Linear:
            if torch.is_autocast_enabled(x.device.type):
                x = x.to(torch.get_autocast_dtype(x.device.type))
            values = self.values()
            weight = self._moved(values, x.dtype)
            bias = self.shifted_bias()
            out: Tensor = SparseLinear.apply(x, weight, bias, values, self.places, self.tiles)
            return out
        # Any other class computes as it does, and finds W' under the weight's name.
        shown = {"weight": Written.apply(self.weight, self.values(), self.places)}
        shown["bias"] = self.shifted_bias()
        self.__dict__.update(shown)
        try:
            return plain_forward(x)  # type: ignore[no-any-return]
        finally:
            for name in shown:
                del self.__dict__[name]

    def _moved(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """W' without a graph."""
        plain, weight = self.plain, cast("Tensor", self.weight)
        key = (weight.data_ptr(), weight._version, dtype, weight.device, self.indexed)
        moved = plain.moved if plain.key == key else None
        # A tensor made for inference cannot be written in training.
        if moved is None or (moved.is_inference() and not torch.is_inference_mode_enabled()):
            moved = weight.detach().to(dtype, copy=True).contiguous()
            plain.moved, plain.key = moved, key
        with torch.no_grad():
            moved.view(-1)[self.places] = values.detach().to(dtype)
        return moved

    def _indexed(self) -> tuple[Any, ...]:
        """Changes when a method's places are loaded anew, or moved."""
        each = [getattr(self, f"{m}_index") for m in self.sparse_methods]
        return tuple((index._version, index.device) for index in each)

    def _index(self) -> None:
        """``places``, ``start`` and each method's way into them."""
        own = [getattr(self, f"{m}_index").long() for m in self.sparse_methods]
        places = own[0] if len(own) == 1 else torch.unique(torch.cat(own))
        self.register_buffer("places", places, persistent=False)
        weight = self.plain.weight.to(places.device)
        self.register_buffer("start", weight.reshape(-1)[places].float(), persistent=False)
        for method, index in zip(self.sparse_methods, own, strict=True):
            into = None if len(own) == 1 else torch.searchsorted(places, index)
            self.register_buffer(f"{method}_into", into, persistent=False)
        few = len(places) * FEW_TILES <= weight.numel()
        whole = self.tile and len(own) == 1 and few
        self.tiles = tiles_of(places, self.tile, weight[0].numel()) if whole else None
        self.indexed = self._indexed()


class SparseLinear(torch.autograd.Function):
    """y = W' x + b where few entries of W' train; the gradient of the rest is dropped at once.

    Shapes: x [..., i], W' [o, i] and b [o] in the type of x or not, values [k] fp32, places [k].
    Kept for the backward pass: x; W' belongs to the layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor,
        places: Tensor,
        tiles: Tiles | None,
    ) -> Tensor:
        """See the class."""
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, places)
        ctx.weight, ctx.tiles, ctx.shape = weight, tiles, x.shape
        ctx.bias = None if bias is None else bias.dtype
        # Not a view of what is computed: another method's hook may add to it in place.
        out = x.new_empty(*x.shape[:-1], len(weight))
        if bias is None:
            torch.mm(flat, weight.t(), out=out.view(-1, len(weight)))
        else:
            torch.addmm(bias.to(x.dtype), flat, weight.t(), out=out.view(-1, len(weight)))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of x, b and the values."""
        flat, places = ctx.saved_tensors
        need_x, _, need_bias, need_values, _, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_x = (grad @ ctx.weight).view(ctx.shape) if need_x else None
        grad_bias = grad.sum(0, dtype=torch.float32).to(ctx.bias) if need_bias else None
        grad_values = entries(grad, flat, places, ctx.tiles) if need_values else None
        return grad_x, None, grad_bias, grad_values, None, None


def entries(grad: Tensor, x: Tensor, places: Tensor, tiles: Tiles | None) -> Tensor:
    """Entries of grad^T x in fp32: [T, o], [T, i] -> [k], the whole product only where it pays."""
    outputs, inputs = grad.shape[1], x.shape[1]
    if tiles is not None:
        rows, columns, order = tiles
        side = math.isqrt(len(order) // len(rows))
        left = grad.view(len(grad), -1, side).index_select(1, rows).permute(1, 2, 0)
        right = x.view(len(x), -1, side).index_select(1, columns).permute(1, 0, 2)
        return torch.bmm(left, right).view(-1)[order].float()
    few = len(places) * FEW <= outputs * inputs
    if few and grad.dtype == torch.float32 and grad.device.type == "cpu":
        parts = [
            (grad.index_select(1, part // inputs) * x.index_select(1, part % inputs)).sum(0)
            for part in torch.split(places, COLUMNS)
        ]
        return torch.cat(parts)
    return (grad.t() @ x).view(-1)[places].float()


def tiles_of(places: Tensor, tile: int, inputs: int) -> Tiles:
    """The tiles that some places fill, and where in them the places lie, one after the other."""
    across = inputs // tile
    which = torch.unique(places // inputs // tile * across + places % inputs // tile)
    rows, columns = which // across, which % across
    side = torch.arange(tile, device=places.device)
    down = (rows[:, None, None] * tile + side[:, None]) * inputs
    inside = (down + columns[:, None, None] * tile + side).reshape(-1)
    assert torch.equal(inside.sort().values, places), "the places fill no whole tiles"
    return rows, columns, inside.argsort()


class Written(torch.autograd.Function):
    """A weight with some entries written over; only these have a gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, places: Tensor) -> Tensor:
        """weight of any shape and type, values [k] fp32, places [k] -> like weight."""
        ctx.save_for_backward(places)
        out = weight.detach().clone(memory_format=torch.contiguous_format)
        out.view(-1)[places] = values.to(out.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of the values."""
        (places,) = ctx.saved_tensors
        return None, grad.reshape(-1)[places].float(), None


def open_entries(
    network: Network, path: str, method: str, index: Tensor, bias: bool, tile: int = 0
) -> dict[str, nn.Parameter]:
    """Lets some entries of a layer's weight train, in a fork.

    Args:
        network: the fork.
        path: the layer.
        method: the method's name, under which values and places are found.
        index: flat places in the weight [outputs, inputs * kernel], ascending; may be empty.
        bias: whether a shift of the bias trains too.
        tile: side of the tiles that the places fill, 0 if they fill none.

    Returns:
        Name -> parameter; the places are the layer's buffer ``METHOD_index`` (int32).
    """
    layer: Any = network.model.get_submodule(path)
    if not isinstance(layer, SparseLayer):
        kind = type(layer)
        if kind not in _CLASSES:
            _CLASSES[kind] = type(f"Sparse{kind.__name__}", (SparseLayer, kind), {})
        layer.__class__ = _CLASSES[kind]
        layer.plain = _Plain(layer.weight.detach())
    device = layer.weight.device
    opened = {f"{method}_value": torch.zeros(len(index), device=device)}
    if bias:
        opened[f"{method}_bias"] = torch.zeros(layer.bias.shape, device=device)
    places = index.to(device, torch.int32, copy=True)
    layer.register_buffer(f"{method}_index", places, persistent=False)
    for name, start in opened.items():
        layer.register_parameter(name, nn.Parameter(start))
    layer.sparse_methods, layer.tile = (*layer.sparse_methods, method), tile
    layer._index()
    return {f"{path}.{n}": layer.get_parameter(n) for n in opened if len(opened[n])}


def fold(network: Network, method: str) -> None:
    """Writes a method's values into the plain weights; entries that it lacks keep every bit."""
    for layer in list(network.model.modules()):
        if not isinstance(layer, SparseLayer) or method not in layer.sparse_methods:
            continue
        index, value = getattr(layer, f"{method}_index").long(), getattr(layer, f"{method}_value")
        plain = cast("Tensor", layer.weight)
        weight = plain.detach().clone(memory_format=torch.contiguous_format)
        weight.view(-1)[index] += value.detach()
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if hasattr(layer, f"{method}_bias"):
            shifted = layer.bias.detach() + getattr(layer, f"{method}_bias").detach()  # type: ignore[operator]
            layer.bias = nn.Parameter(shifted, requires_grad=False)
            delattr(layer, f"{method}_bias")
        for part in ("index", "value", "into"):
            delattr(layer, f"{method}_{part}")
        layer.sparse_methods = tuple(m for m in layer.sparse_methods if m != method)
        layer.plain, layer.tile = _Plain(weight), 0
        if layer.sparse_methods:
            layer._index()
            continue
        for name in ("places", "start", "plain", "indexed", "tile", "tiles", "sparse_methods"):
            delattr(layer, name)
        layer.__class__ = type(layer).__bases__[-1]
