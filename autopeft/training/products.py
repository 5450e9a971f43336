"""A frozen matrix and its products with many rows, in the layout that the CPU wants."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


class Matrix:
    """A frozen weight W [o, i], multiplied forward and back.

    oneDNN lays a bf16 matrix out anew in each product unless it is given one laid out already.
    With ``fixed``, W is laid out at its first use, once for all forks that share it.

    Args:
        weight: W, in any format.
        fixed: W never changes while this lives.
    """

    def __init__(self, weight: Tensor, fixed: bool = False) -> None:
        self.weight, self._fixed = weight, fixed
        self._packed: dict[str, Tensor] = {}

    def ahead(
        self, x: Tensor, bias: Tensor | None = None, more: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """x W^T + c + u v, rounded once: a small u v is not lost beside a large x W^T + c.

        Args:
            x: [..., i]; with ``more``, [n, i].
            bias: c [o].
            more: u [n, r] and v [r, o], in the format of x.

        Returns:
            [..., o] in the format of x.
        """
        bias = None if bias is None else bias.to(x.dtype)
        if self._packs(x):
            packed = self._layout("ahead", self.weight, x)
            operator = torch.ops.mkldnn._linear_pointwise
            if more is None:
                out: Tensor = operator(x, packed, bias, "none", [], "")
            else:
                out = operator.binary(x, more[0] @ more[1], packed, bias, "add")
            return out
        weight = self.weight.to(x.dtype)
        if more is not None:
            x, weight = torch.cat([x, more[0]], 1), torch.cat([weight, more[1].t()], 1)
        return functional.linear(x, weight, bias)

    def back(self, grad: Tensor) -> Tensor:
        """The gradient of x, [..., i], from that of the product, [..., o]."""
        if self._packs(grad):
            packed = self._layout("back", self.weight.t(), grad)
            operator = torch.ops.mkldnn._linear_pointwise
            out: Tensor = operator(grad, packed, None, "none", [], "")
            return out
        return grad @ self.weight.to(grad.dtype)

    def _packs(self, x: Tensor) -> bool:
        same = x.dtype == self.weight.dtype == torch.bfloat16
        return self._fixed and same and x.device.type == "cpu" and can_pack()

    def _layout(self, way: str, matrix: Tensor, x: Tensor) -> Tensor:
        if way not in self._packed:
            rows = x.numel() // x.shape[-1]
            # Made for training too where the first use is in scoring.
            with torch.inference_mode(False), torch.no_grad():
                packed = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), rows)
            self._packed[way] = packed
        return self._packed[way]


@cache
def can_pack() -> bool:
    """Whether torch's own packed products in bf16 work here: they are not a public interface."""
    x, w = torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(4, 8, dtype=torch.bfloat16)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(w, 2)
        plain = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        added = torch.ops.mkldnn._linear_pointwise.binary(x, plain, packed, w[:, 0], "add")
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return bool((plain == 8).all() and (added == 17).all())
