"""Relatives of LoRA: only B trains (asymmetry), or groups of updates kept apart (PEGO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.methods.method import Injection, Method, Rate, choice, integer, number, rounded
from autopeft.methods.settle import changed, shapes_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class LoraBOnly(Method):
    """y = W x + s B A x with A frozen; only B trains, from 0. s = lora_alpha / r.

    A tuned A does little better than a random one, so at equal count B alone has twice the rank.

    Differs from the paper: A is saved with the adapter (it is random).

    Attributes:
        r: rank of the update.
        lora_alpha: scale.
        a_init: rows of A: ``orthonormal`` and random; LoRA's own ``kaiming``; or ``svd``, the
            right singular vectors of W with the largest singular values. The first and the last
            take at most the layer's own rank.
    """

    name: ClassVar[str] = "lora_b_only"
    family: ClassVar[str] = "low_rank"
    paper: ClassVar[str] = "Zhu et al. 2024, arXiv:2402.16842"
    summary: ClassVar[str] = "LoRA of which only the second factor trains."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(3.5e-3, 1.4e-4, 1.4e-2),
        "sgd": Rate(3.5e-2, 7e-3, 1.4e-1),
    }
    takes_modules: ClassVar[bool] = True

    r: int = integer(16, 1, 256)
    lora_alpha: float = number(32.0, 0.001, 4096.0)
    a_init: str = choice("orthonormal", "kaiming", "svd")

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """``lora_alpha`` defaults to 2 r."""
        return with_alpha(raw, 16)

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """A rank above all layers' own is theirs; the scale s stays what it is."""
        found = []
        for stratum in strata:
            r, alpha = stratum.options["r"], stratum.options["lora_alpha"]
            most = max(map(min, shapes_of(facts, [stratum])))
            if stratum.options["a_init"] != "kaiming" and r > most:
                stratum = changed(stratum, r=most, lora_alpha=rounded(alpha * most / r))
            found.append(stratum)
        return found

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """r outputs a module."""
        return sum(self._rank(shape) * shape[1] for shape in shapes_of(facts, [stratum]))

    def _rank(self, shape: Sequence[int]) -> int:
        return self.r if self.a_init == "kaiming" else min(self.r, *shape)

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds A, frozen, and B."""
        import torch

        from autopeft.methods.affine import add_buffers, add_parameters
        from autopeft.methods.low_rank import add_low_rank, paths_of

        trainable: dict[str, nn.Parameter] = {}
        fixed: dict[str, Tensor] = {}
        for stratum in strata:
            me = cls(**stratum.options)
            for path in paths_of(network, stratum):
                module: Any = network.model.get_submodule(path)
                outputs, fan_in = module.weight.flatten(1).shape
                rank = me._rank((fan_in, outputs))
                a = _frozen_a(me.a_init, rank, fan_in, network, path)
                add_buffers(module, {"lora_b_only_a": a})
                fixed[f"{path}.lora_b_only_a"] = module.lora_b_only_a
                zeros = {"lora_b_only_b": torch.zeros(outputs, rank)}
                trainable |= add_parameters(module, path, zeros)
                module.lora_b_only_scale = me.lora_alpha / me.r
                add_low_rank(module, _b_only, cls.name)
        return Injection(trainable, fixed)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Adds s B A to the weights."""
        names = ("lora_b_only_a", "lora_b_only_b", "lora_b_only_scale")
        fold_all(network, _b_only, cls.name, names)


@dataclass(frozen=True)
class Pego(Method):
    """A group of n LoRA updates for each layer, orthogonal to W and to each other.

    y = W x + s sum_i B_i A_i x, s = lora_alpha / r, which is LoRA of rank n r. The loss gets
    lam (preserve + diversify) / (number of layers), with preserve = sum_i |W^ A_i^T|^2, which
    keeps what the updates read orthogonal to what W reads, and diversify = sum over i < j of
    |A_i A_j^T|^2.

    Differs from the paper's code, which penalizes the sums of |W (B_i A_i)^T| and of
    |B_i A_i (B_j A_j)^T|, entry by entry, over query and value of all blocks with s = 1 and one
    lam of 1e-3: a change of zero costs nothing there. Here A alone is kept orthogonal, in squares
    and as a mean over layers; the rates are LoRA's.

    Attributes:
        n: updates in a group.
        r: rank of each.
        lora_alpha: scale.
        lam: weight of the penalty; 0 is LoRA of rank n r.
        basis: W^: ``rows``, W with rows of length 1, or ``top``, its r n right singular vectors
            with the largest singular values.
    """

    name: ClassVar[str] = "pego"
    family: ClassVar[str] = "low_rank"
    paper: ClassVar[str] = "Hu et al. 2024, arXiv:2407.15085"
    summary: ClassVar[str] = "Groups of low-rank updates kept orthogonal to W and to each other."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 2e-4, 2e-2),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }
    takes_modules: ClassVar[bool] = True

    n: int = integer(4, 1, 16)
    r: int = integer(4, 1, 64)
    lora_alpha: float = number(8.0, 0.001, 4096.0)
    lam: float = number(1e-3, 0.0, 10.0)
    basis: str = choice("rows", "top")

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """``lora_alpha`` defaults to 2 r."""
        return with_alpha(raw, 4)

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options: without a penalty its form does not matter."""
        options = super().options(facts)
        if self.lam == 0:
            options["basis"] = "rows"
        return options

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """Without a penalty only n r counts: the groups are as few as they can be."""
        return [s if s.options["lam"] else cls._few(s) for s in strata]

    @classmethod
    def _few(cls, stratum: Stratum) -> Stratum:
        n, r, alpha = (stratum.options[k] for k in ("n", "r", "lora_alpha"))
        most = next(f for f in fields(cls) if f.name == "r").metadata["high"]
        rank = max(k for k in range(1, most + 1) if n * r % k == 0)
        scaled = rounded(alpha * rank / r)
        highest = next(f for f in fields(cls) if f.name == "lora_alpha").metadata["high"]
        if scaled > highest:
            return stratum
        return changed(stratum, n=n * r // rank, r=rank, lora_alpha=scaled)

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """n r (fan in + outputs) a module."""
        return sum(self.n * self.r * sum(shape) for shape in shapes_of(facts, [stratum]))

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds the groups and the penalty."""
        import torch

        from autopeft.methods.affine import add_parameters
        from autopeft.methods.low_rank import add_low_rank, fresh_a, paths_of

        trainable: dict[str, nn.Parameter] = {}
        terms: list[tuple[Tensor, Tensor, int, float]] = []
        for stratum in strata:
            me = cls(**stratum.options)
            for path in paths_of(network, stratum):
                module: Any = network.model.get_submodule(path)
                outputs, fan_in = module.weight.flatten(1).shape
                a = torch.cat([fresh_a(me.r, fan_in) for _ in range(me.n)])
                values = {"pego_a": a, "pego_b": torch.zeros(outputs, me.n * me.r)}
                trainable |= add_parameters(module, path, values)
                module.pego_scale = me.lora_alpha / me.r
                add_low_rank(module, _pego, cls.name)
                if me.lam:
                    gram = _gram(me.basis, me.n * me.r, network, path)
                    terms.append((module.pego_a, gram, me.n, me.lam))

        def penalty() -> Tensor:
            each = [lam * penalty_of(a, gram, n) for a, gram, n, lam in terms]
            return torch.stack(each).mean()

        return Injection(trainable, extra_loss=penalty if terms else None)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Adds s B A to the weights."""
        fold_all(network, _pego, cls.name, ("pego_a", "pego_b", "pego_scale"))


def penalty_of(a: Tensor, gram: Tensor, n: int) -> Tensor:
    """PEGO's preserve + diversify for one layer.

    Args:
        a: the n matrices A_i, one below the other [n r, fan in].
        gram: W^^T W^ [fan in, fan in], so that the cost does not grow with W's rows.
        n: number of matrices.
    """
    preserve = ((a @ gram) * a).sum()
    groups = a.view(n, -1, a.shape[1])
    # All pairs at once: |A_i A_j^T|^2 over i, j, less the diagonal, each pair counted twice.
    every = (a @ a.t()).square().sum()
    own = (groups @ groups.mT).square().sum()
    return preserve + (every - own) / 2


def _gram(basis: str, rank: int, network: Network, path: str) -> Tensor:
    """W^^T W^ of a layer's frozen weight [fan in, fan in], in fp32."""
    from torch.nn.functional import normalize

    from autopeft.methods.singular import svd_of

    if basis == "top":
        rows = svd_of(network, path)[2][:rank]
    else:
        rows = normalize(network.model.get_submodule(path).weight.detach().flatten(1), dim=1)
    gram: Tensor = rows.t() @ rows
    return gram


def _frozen_a(kind: str, rank: int, fan_in: int, network: Network, path: str) -> Tensor:
    """A [r, fan in] that does not train."""
    import torch

    from autopeft.methods.low_rank import fresh_a
    from autopeft.methods.singular import svd_of

    if kind == "svd":
        return svd_of(network, path)[2][:rank].clone()
    if kind == "kaiming":
        return fresh_a(rank, fan_in)
    return torch.nn.init.orthogonal_(torch.empty(rank, fan_in))


def _b_only(module: Any) -> tuple[Tensor, Tensor]:
    return module.lora_b_only_a, module.lora_b_only_b * module.lora_b_only_scale


def _pego(module: Any) -> tuple[Tensor, Tensor]:
    return module.pego_a, module.pego_b * module.pego_scale


def fold_all(network: Network, factors: Any, owner: str, names: tuple[str, ...]) -> None:
    """Folds a method's low-rank updates wherever its first name is, and takes all names out."""
    from autopeft.methods.affine import remove
    from autopeft.methods.low_rank import fold_low_rank

    for module in network.model.modules():
        if hasattr(module, names[0]):
            fold_low_rank(module, factors, owner)
            remove(module, names)


def with_alpha(raw: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """``lora_alpha`` = 2 r unless given."""
    r = raw.get("r", rank)
    fits = "lora_alpha" not in raw and isinstance(r, int)
    return {**raw, "lora_alpha": 2 * r} if fits else dict(raw)
