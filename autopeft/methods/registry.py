"""The methods by name."""

from __future__ import annotations

from autopeft.errors import UserError, nearest
from autopeft.methods.adalora import AdaLora
from autopeft.methods.adapters import Houlsby, Multiway, Parallel, Pfeiffer
from autopeft.methods.bitfit import BitFit
from autopeft.methods.bits import FairTuneMask, MemControlBits
from autopeft.methods.clover import Clover
from autopeft.methods.conv_adapters import Conformer, Convpass
from autopeft.methods.difffit import DiffFit
from autopeft.methods.dvpt import Dvpt
from autopeft.methods.full import Full
from autopeft.methods.linear_probe import LinearProbe
from autopeft.methods.ln_tuning import LnTuning
from autopeft.methods.lora import Lora
from autopeft.methods.lora_qv import LoraQv
from autopeft.methods.lora_variants import LoraBOnly, Pego
from autopeft.methods.method import Method
from autopeft.methods.prompts import Deep, Shallow
from autopeft.methods.sara import Sara
from autopeft.methods.sct import Sct
from autopeft.methods.spafit import SpaFit
from autopeft.methods.sparse import Sparse
from autopeft.methods.sparse_presets import (
    FedSelectRule,
    FisherMask,
    Gps,
    LargeWeight,
    LtSft,
    Smt,
)
from autopeft.methods.spectral import SpectralAdditive, SpectralRotational
from autopeft.methods.ssf import Ssf
from autopeft.methods.svdiff import SvDiff
from autopeft.methods.tuner_row import REFUSED
from autopeft.methods.tuners import TUNERS
from autopeft.methods.unipt import UniPT

_ALL: tuple[type[Method], ...] = (
    # baselines
    LinearProbe,
    Full,
    # bias
    BitFit,
    # scale and shift
    Ssf,
    DiffFit,
    LnTuning,
    # low rank
    Lora,
    LoraQv,
    LoraBOnly,
    Pego,
    SpaFit,
    AdaLora,
    # spectral
    SvDiff,
    SpectralAdditive,
    SpectralRotational,
    Clover,
    # added modules
    Houlsby,
    Pfeiffer,
    Parallel,
    Convpass,
    Conformer,
    Multiway,
    Sct,
    # prompts
    Shallow,
    Deep,
    Dvpt,
    # sparse
    Sparse,
    Gps,
    LtSft,
    Smt,
    Sara,
    LargeWeight,
    FedSelectRule,
    FisherMask,
    FairTuneMask,
    MemControlBits,
    # side network
    UniPT,
    # the other tuners of peft
    *TUNERS,
)
METHODS: dict[str, type[Method]] = {m.name: m for m in _ALL}
BUILT_IN = frozenset(METHODS)


def method_named(name: str, where: str = "method") -> type[Method]:
    """The method of that name.

    Raises:
        UserError: there is none; the nearest name is offered, or the reason given.
    """
    if isinstance(name, str) and name in REFUSED:
        raise UserError(f"method {name!r} is not offered: {REFUSED[name]}", where)
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"unknown method {name!r}", where, nearest(str(name), METHODS))
    return METHODS[name]


def register(method: type[Method]) -> type[Method]:
    """Adds a method to this process, under its name; the same class may come again.

    Workers do not know it: for a search, name its file in a space's ``methods_from``.

    Raises:
        UserError: another class already has the name.
    """
    known = METHODS.get(method.name, method)
    built_in = method.name in BUILT_IN and known is not method
    if built_in or known.__qualname__ != method.__qualname__:
        raise UserError(f"method {method.name!r} already exists", "", "Give yours another name.")
    METHODS[method.name] = method
    return method
