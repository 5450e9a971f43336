"""Spectral adapters: the largest singular vectors of the weights move or turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.methods.method import Injection, Method, Rate, integer
from autopeft.methods.settle import clipped, shapes_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum

_BUFFERS = ("spectral_u", "spectral_s", "spectral_vt")


@dataclass(frozen=True)
class SpectralAdditive(Method):
    """W' = (U_r + A_u) S_r (V_r + A_v)^T + the rest of W, from the r largest singular values.

    A_u [outputs, r] and A_v [fan in, r] train, from 0. The change of W has rank 2 r at most, so it
    is added to the layer's output in factors, as LoRA is. On convolutions W is seen as [outputs,
    fan in]. Layers of a smaller rank than r take their own.

    Attributes:
        r: singular vectors that move.
    """

    name: ClassVar[str] = "spectral_additive"
    family: ClassVar[str] = "spectral"
    paper: ClassVar[str] = "Zhang and Pilanci 2024, arXiv:2405.13952"
    summary: ClassVar[str] = "Moves the largest singular vectors of the weights of chosen layers."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-4, 5e-5, 5e-3),
        "sgd": Rate(1e-2, 1e-3, 1e-1),
    }
    takes_modules: ClassVar[bool] = True

    r: int = integer(8, 1, 128)

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """A rank above all layers' own is theirs."""
        return [clipped(cls, s, "r", max(map(min, shapes_of(facts, [s])))) for s in strata]

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """r (fan in + outputs) a module."""
        return sum(min(self.r, *shape) * sum(shape) for shape in shapes_of(facts, [stratum]))

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Decomposes the weights and adds A_u and A_v."""
        import torch

        from autopeft.methods.affine import add_parameters
        from autopeft.methods.low_rank import add_low_rank

        trainable: dict[str, nn.Parameter] = {}
        for path, module, (u, _, vt) in _cut(network, strata):
            zeros = {"spectral_au": torch.zeros_like(u), "spectral_av": torch.zeros_like(vt.t())}
            trainable |= add_parameters(module, path, zeros)
            add_low_rank(module, _additive, cls.name)
        return Injection(trainable)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Writes W'."""
        _fold(network, _additive, cls.name, ("spectral_au", "spectral_av"))


@dataclass(frozen=True)
class SpectralRotational(Method):
    """W' = (U_r R_u) S_r (V_r R_v)^T + the rest of W; all singular values stay.

    R = (I - K)(I + K)^-1 with K = (Q - Q^T) / 2, the Cayley map, from a free matrix Q [r, r] each
    for u and v; Q = 0 at first, so R = I. As W' - W = U_r (R_u S_r R_v^T - S_r) V_r^T, it costs
    what LoRA of rank r costs.

    Attributes:
        r: singular vectors that turn among themselves.
    """

    name: ClassVar[str] = "spectral_rotational"
    family: ClassVar[str] = "spectral"
    paper: ClassVar[str] = "Zhang and Pilanci 2024, arXiv:2405.13952"
    summary: ClassVar[str] = "Turns the largest singular vectors of the weights of chosen layers."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(1e-3, 1e-4, 1e-2),
        "sgd": Rate(1e-2, 1e-3, 1e-1),
    }
    takes_modules: ClassVar[bool] = True

    r: int = integer(8, 2, 128)

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """A rank above all layers' own is theirs."""
        return [clipped(cls, s, "r", max(map(min, shapes_of(facts, [s])))) for s in strata]

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """2 r^2 a module, of which r (r - 1) are free."""
        return sum(2 * min(self.r, *shape) ** 2 for shape in shapes_of(facts, [stratum]))

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Decomposes the weights and adds both free matrices."""
        import torch

        from autopeft.methods.affine import add_parameters
        from autopeft.methods.low_rank import add_low_rank

        trainable: dict[str, nn.Parameter] = {}
        for path, module, (_, s, _) in _cut(network, strata):
            square = torch.zeros(len(s), len(s))
            zeros = {"spectral_qu": square, "spectral_qv": square.clone()}
            trainable |= add_parameters(module, path, zeros)
            add_low_rank(module, _rotational, cls.name)
        return Injection(trainable)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Writes W'."""
        _fold(network, _rotational, cls.name, ("spectral_qu", "spectral_qv"))


def _cut(
    network: Network, strata: Sequence[Stratum]
) -> Iterable[tuple[str, nn.Module, tuple[Tensor, Tensor, Tensor]]]:
    """Each module with its r largest singular values and vectors, which it then holds."""
    from autopeft.methods.affine import add_buffers
    from autopeft.methods.low_rank import paths_of
    from autopeft.methods.singular import svd_of

    for stratum in strata:
        r = int(stratum.options["r"])
        for path in paths_of(network, stratum):
            u, s, vt = svd_of(network, path)
            triple = u[:, :r].clone(), s[:r].clone(), vt[:r].clone()
            module = network.model.get_submodule(path)
            add_buffers(module, dict(zip(_BUFFERS, triple, strict=True)))
            yield path, module, triple


def _additive(module: Any) -> tuple[Tensor, Tensor]:
    """W' - W = A_u S V^T + (U + A_u) S A_v^T, as A [2 r, fan in] and B [outputs, 2 r]."""
    import torch

    au, av, s = module.spectral_au, module.spectral_av, module.spectral_s
    a = torch.cat([module.spectral_vt, av.t()])
    return a, torch.cat([au * s, (module.spectral_u + au) * s], 1)


def _rotational(module: Any) -> tuple[Tensor, Tensor]:
    """W' - W = U (R_u S R_v^T - S) V^T, as A [r, fan in] and B [outputs, r]."""
    import torch

    s = module.spectral_s
    core = (_cayley(module.spectral_qu) * s) @ _cayley(module.spectral_qv).t() - torch.diag(s)
    return module.spectral_vt, module.spectral_u @ core


def _cayley(q: Tensor) -> Tensor:
    """A rotation from any square matrix; I from 0."""
    import torch

    skew = (q - q.t()) / 2
    eye = torch.eye(len(q), device=q.device, dtype=q.dtype)
    turned: Tensor = torch.linalg.solve(eye + skew, eye - skew)  # the two factors commute
    return turned


def _fold(network: Network, factors: Any, owner: str, names: tuple[str, ...]) -> None:
    from autopeft.methods.affine import remove
    from autopeft.methods.low_rank import fold_low_rank

    for module in network.model.modules():
        if hasattr(module, names[0]):
            fold_low_rank(module, factors, owner)
            remove(module, (*names, *_BUFFERS))
