"""Explicit attention of a plain ViT as one autograd function: each value is copied once."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def attend_explicitly(module: Any) -> None:
    """Makes an attention module of timm explicit, fast where it is the plain one."""
    module.fused_attn = False
    if _is_plain(module):
        module.forward = MethodType(_forward, module)


def _is_plain(module: Any) -> bool:
    kind = type(module)  # timm itself is imported by backbones/ alone
    if not kind.__module__.startswith("timm.") or kind.__name__ != "Attention":
        return False
    inner = (module.q_norm, module.k_norm, getattr(module, "norm", None) or nn.Identity())
    silent = (*inner, module.attn_drop)
    return (
        all(type(m) is nn.Identity for m in inner)
        and "forward" not in vars(module)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in silent)
        and getattr(module, "gate", None) is None
        and module.attn_drop.p == 0
    )


def _forward(
    self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """In the place of ``timm.layers.Attention.forward``."""
    if attn_mask is not None or is_causal:
        masked: Tensor = type(self).forward(self, x, attn_mask, is_causal)
        return masked
    qkv = self.qkv(x)
    if torch.is_autocast_enabled(x.device.type):
        qkv = qkv.to(torch.get_autocast_dtype(x.device.type))
    out: Tensor = self.proj_drop(self.proj(Attend.apply(qkv, self.num_heads, self.scale)))
    return out


class Attend(torch.autograd.Function):
    """softmax(s q k^T) v for all heads.

    Shapes: qkv [B, N, 3 h d] with q, k, v one after the other and the heads in each; result
    [B, N, h d]. Saved for the backward pass: q, k, v and the attention [B h, N, N].
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, s: float) -> Tensor:
        """See the class."""
        batch, tokens, width = qkv.shape
        apart = qkv.view(batch, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
        q, k, v = own = apart.contiguous().view(3, batch * heads, tokens, -1)
        # With beta=0 the first argument is never read.
        scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=s)
        weights = scores.softmax(-1)
        ctx.save_for_backward(own, weights)
        ctx.s = s
        out = (weights @ v).view(batch, heads, tokens, -1)
        joined: Tensor = out.transpose(1, 2).reshape(batch, tokens, width // 3)
        return joined

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of qkv."""
        own, weights = ctx.saved_tensors
        q, k, v = own
        batch, tokens, width = grad.shape
        heads = len(q) // batch
        grad = grad.view(batch, tokens, heads, -1).transpose(1, 2).reshape(v.shape)
        grads = torch.empty_like(own)
        torch.bmm(weights.mT, grad, out=grads[2])
        scores = torch._softmax_backward_data(grad @ v.mT, weights, -1, weights.dtype).mul_(ctx.s)
        torch.bmm(scores, k, out=grads[0])
        torch.bmm(scores.mT, q, out=grads[1])
        apart = grads.view(3, batch, heads, tokens, -1).permute(1, 3, 0, 2, 4)
        grad_qkv: Tensor = apart.reshape(batch, tokens, 3 * width)
        return grad_qkv, None, None
