"""CLOVER: the products of the attention's matrices in orthogonal factors; their cores train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, choice

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class Clover(Method):
    """Per head, [Wq|bq]^T [Wk|bk] = U C V^T and Wo [Wv|bv] = U' C' V'^T; C and C' train.

    Each product is that of all it stands for, so nothing is lost (biases are an extra column).
    The fork's query, key, value and output weights become the frozen U, V, V', U'; C multiplies
    the query, C' what goes into the output projection. The attention's own scale stays.

    Differs from the paper: what trains is the distance of the cores from the singular values, so
    that weight decay pulls towards the pretrained weights; its experiments also turn the MLP, in
    groups of 64. It bears no other method on its blocks.

    Attributes:
        core: ``full``, dh x dh numbers a head, or ``diag``, dh numbers.
    """

    name: ClassVar[str] = "clover"
    family: ClassVar[str] = "spectral"
    paper: ClassVar[str] = "Meng et al. 2024, arXiv:2411.17426"
    summary: ClassVar[str] = "Trains the cores of the factored products of attention matrices."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(1e-4, 1e-5, 1e-2),
        "sgd": Rate(1e-2, 1e-3, 1e-1),
    }
    exclusive: ClassVar[bool] = True

    core: str = choice("full", "diag")

    def options(self, facts: Facts) -> dict[str, Any]:
        """All options.

        Raises:
            UserError: the backbone's attention is not a plain one.
        """
        if facts.family != "vit" or "qkv" not in facts.modules:
            raise _refusal(facts.name, "has no attention with a qkv layer")
        if any("q_norm" in path for norms in facts.norms for path in norms):
            raise _refusal(facts.name, "normalizes queries and keys")
        return super().options(facts)

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """Two cores a head: 2 D a block with ``diag``, 2 D dh with ``full``."""
        total = 0
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            width = facts.modules["qkv"][block][1] // 3
            total += 2 * width * (width // facts.heads if self.core == "full" else 1)
        return total

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Rewrites the attention of each block and adds the cores."""
        trainable: dict[str, nn.Parameter] = {}
        for stratum in strata:
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                path = f"{network.block_names(block)}.attn"
                attention = network.model.get_submodule(path)
                _check(attention, network.facts.name)
                trainable |= _rewrite(attention, path, stratum.options["core"] == "full")
        return Injection(trainable)

    @classmethod
    def fold(cls, network: Network) -> None:
        """C goes into the query's rows, C' into the columns of the output projection."""
        import torch

        from autopeft.methods.affine import remove, set_frozen, unhook

        for module in network.model.modules():
            if not hasattr(module, "clover_core"):
                continue
            unhook(module, cls.name)
            core = _core(module)
            heads, width = core.shape[0], core.shape[0] * core.shape[1]
            with torch.no_grad():
                if module.clover_is_query:
                    for name in ("weight", "bias"):
                        plain = getattr(module, name)
                        if plain is not None:
                            rows = plain[:width].view(heads, width // heads, -1)
                            folded = (core.mT @ rows).reshape(plain[:width].shape)
                            set_frozen(module, name, torch.cat([folded, plain[width:]]))
                else:
                    columns = module.weight.view(-1, heads, 1, width // heads)
                    set_frozen(module, "weight", (columns @ core).reshape(module.weight.shape))
            remove(module, ("clover_core", "clover_s", "clover_is_query"))


def _refusal(name: str, reason: str) -> UserError:
    fix = "Choose another method, or a plain ViT."
    return UserError(f"cannot be used: {name} {reason}", "method clover", fix)


def _check(attention: Any, name: str) -> None:
    """Refuses what stands between the matrices: then their product is not what is computed."""
    from torch import nn

    between = [getattr(attention, n, None) for n in ("q_norm", "k_norm", "norm")]
    plain = all(module is None or isinstance(module, nn.Identity) for module in between)
    gated = getattr(attention, "gate", None) is not None or hasattr(attention, "rope")
    if not plain or gated:
        raise _refusal(name, "has norms, gates or rotations inside its attention")


def _rewrite(attention: Any, path: str, full: bool) -> dict[str, nn.Parameter]:
    """Puts the orthogonal factors in place and registers the cores."""
    import torch

    from autopeft.methods.affine import add_buffers, add_parameters, set_frozen

    qkv, proj, heads = attention.qkv, attention.proj, attention.num_heads
    with torch.no_grad():
        query, key, value = _with_bias(qkv).view(3, heads, -1, qkv.in_features + 1)
        left, s, right = _product(query, key)
        out = proj.weight.double().view(proj.out_features, heads, -1).permute(1, 2, 0)
        out, s_out, values = _product(out, value)
        rows = torch.cat([t.flatten(0, 1) for t in (left, right, values)]).float()
        set_frozen(qkv, "weight", rows[:, :-1].contiguous())
        if qkv.bias is not None:
            set_frozen(qkv, "bias", rows[:, -1].contiguous())
        set_frozen(proj, "weight", out.flatten(0, 1).t().float().contiguous())
    found: dict[str, nn.Parameter] = {}
    for name, module, values_ in (("qkv", qkv, s), ("proj", proj, s_out)):
        # A vector with one number a direction, so that no weight decay acts on it.
        shape = (*values_.shape, values_.shape[1]) if full else (values_.numel(),)
        zeros = {"clover_core": torch.zeros(shape)}
        add_buffers(module, {"clover_s": values_.float()})
        found |= add_parameters(module, f"{path}.{name}", zeros)
        module.clover_is_query = module is qkv
    _turned.owner = _turned_input.owner = Clover.name  # type: ignore[attr-defined]
    qkv.register_forward_hook(_turned)
    proj.register_forward_pre_hook(_turned_input)
    return found


def _with_bias(layer: nn.Linear) -> Tensor:
    """[W|b] in fp64, b = 0 where there is none."""
    import torch

    weight = layer.weight.double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.double()
    return torch.cat([weight, bias[:, None]], 1)


def _product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U^T, C and V^T of left^T right = U C V^T for each head: [H, dh, n], [H, dh], [H, dh, m].

    Only dh x dh matrices are decomposed. Signs are fixed as in ``singular``.
    """
    import torch

    from autopeft.methods.singular import fixed_signs

    q1, r1 = torch.linalg.qr(left.mT)
    q2, r2 = torch.linalg.qr(right.mT)
    u, s, vt = torch.linalg.svd(r1 @ r2.mT)
    u, v = q1 @ u, q2 @ vt.mT
    sign = torch.stack([fixed_signs(one) for one in u])[:, None]
    return (u * sign).mT, s, (v * sign).mT


def _core(module: Any) -> Tensor:
    """C: [H, dh, dh]."""
    import torch

    s, moved = module.clover_s, module.clover_core
    core: Tensor = torch.diag_embed(s if moved.ndim == 3 else s + moved.view_as(s))
    return core + moved if moved.ndim == 3 else core


def _turned(module: Any, args: Any, out: Tensor) -> Tensor:
    """q C in the place of q, in the output of ``qkv``."""
    import torch

    width = module.clover_s.numel()
    return torch.cat([_times(module, out[..., :width], False), out[..., width:]], -1)


def _turned_input(module: Any, args: Any) -> Any:
    """o C'^T in the place of the attention's output o."""
    return (_times(module, args[0], True),)


def _times(module: Any, x: Tensor, transposed: bool) -> Tensor:
    """x [B, N, H dh] times the cores.

    Singular values and what was learnt are applied apart: in bf16 their sum would lose the small
    steps of the latter.
    """
    import torch

    s, moved = module.clover_s, module.clover_core
    known = x * s.flatten().to(x.dtype)
    if moved.ndim == 1:
        return torch.addcmul(known, x, moved.to(x.dtype))
    moved = (moved.mT if transposed else moved).to(x.dtype)
    heads = x.view(*x.shape[:-1], *s.shape).transpose(-2, -3)
    turned: Tensor = known + (heads @ moved).transpose(-2, -3).flatten(-2)
    return turned
