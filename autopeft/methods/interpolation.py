"""Which methods' effect can be scaled inside the adapter, and by what: a table. No torch.

An adapter is interpolable when (1 - a) W0 + a W1 of the plain weights, W1 with the adapter folded
in, is again an adapter of the same shape for every a: W1 is linear in some of what trains. A test
holds each row of the table against merged weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from autopeft.candidate import Post, Stratum
from autopeft.errors import UserError, nearest
from autopeft.methods.method import rounded
from autopeft.methods.registry import method_named

Move = Literal["scaled", "held", "first"]
STEPS = ("wise_ft",)
_FIELDS = ("method", "alpha", "where_possible")


@dataclass(frozen=True)
class Linear:
    """How one method's tensors move when its effect is scaled by a.

    Attributes:
        scaled: parts of names that are multiplied by a (LoRA's B).
        held: parts of names that stay (LoRA's A). All others go toward their first values, which
            change nothing: frozen weights, zeros, ones.
        alone: W1 depends on W0 by more than a sum, so no other method may be on these blocks.
        portable: what it adds to W0 does not depend on W0.
    """

    scaled: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    alone: bool = False
    portable: bool = True


_PLAIN = Linear()
_ALONE = Linear(alone=True, portable=False)
_SPARSE = ("sparse", "gps", "lt_sft", "smt", "sara", "large_weight", "fedselect_rule")

LINEAR: dict[str, Linear] = {
    # plain parameters, or sums with zeros at first
    **dict.fromkeys(("full", "bitfit", "ln_tuning", "fairtune_mask"), _PLAIN),
    **dict.fromkeys((*_SPARSE, "fisher_mask", "shira", "supertuning"), _PLAIN),
    **dict.fromkeys(("lora_b_only", "beft", "c3a", "fourierft", "waveft", "tinylora"), _PLAIN),
    # products: one factor is scaled
    "lora": Linear(("lora_B",), ("lora_A",)),
    "lora_qv": Linear(("lora_qv_bq", "lora_qv_bv"), ("lora_qv_aq", "lora_qv_av")),
    "pego": Linear(("pego_b",), ("pego_a",)),
    "spafit": Linear(("spafit_b",), ("spafit_a",)),
    "adalora": Linear(("lora_E",), ("lora_A", "lora_B")),
    "delora": Linear(("delora_lambda",), ("delora_A", "delora_B")),
    "gralora": Linear(("gralora_B",), ("gralora_A",)),
    "loha": Linear(("hada_w1_a",), ("hada_w1_b", "hada_w2_a", "hada_w2_b")),
    "lokr": Linear(("lokr_w1",), ("lokr_w2", "lokr_w2_a", "lokr_w2_b")),
    "vera": Linear(("vera_lambda_b",), ("vera_lambda_d",)),
    "pvera": Linear(("pvera_lambda_b",), ("pvera_lambda_d",)),
    "randlora": Linear(("randlora_lambda",), ("randlora_gamma",)),
    "miss": _PLAIN,
    # products with the frozen weight itself
    "hira": Linear(("hira_B",), ("hira_A",), alone=True, portable=False),
    "ia3": _ALONE,
    "ssf": _ALONE,
}
# Options of these methods with which it is not so, and why.
_UNLESS: dict[str, tuple[tuple[str, tuple[Any, ...], str], ...]] = {
    "lora": (
        ("use_dora", (True,), "DoRA's weight is not linear in what trains"),
        ("init", ("pissa", "olora"), "the start is taken out of the frozen weights"),
    ),
    "miss": (("variant", ("bat",), "the update depends on the weight"),),
    "ssf": (("init", ("paper",), "a fresh adapter is not the frozen network"),),
}


def why_not(strata: Sequence[Stratum]) -> str:
    """Why a candidate's effect cannot be scaled inside its adapter; empty where it can."""
    for stratum in strata:
        name = stratum.method
        if name not in LINEAR:
            if not method_named(name).mergeable:
                return f"{name} adds what is no weight of the plain model"
            return f"{name} is not known to change weights in proportion to what trains"
        for option, values, reason in _UNLESS.get(name, ()):
            if stratum.options.get(option) in values:
                return f"{name} with {option} = {stratum.options[option]}: {reason}"
        others = [s for s in strata if s.method != name and _overlap(s, stratum)]
        if LINEAR[name].alone and others:
            return f"{name} multiplies weights that {others[0].method} changes too"
    # A tensor's rule is found by its name, which must then be one method's.
    for one, other in combinations(sorted({s.method for s in strata}), 2):
        if _leaves(one) & _leaves(other):
            return f"{one} and {other} name their tensors alike"
    return ""


def _leaves(method: str) -> set[str]:
    return {*LINEAR[method].scaled, *LINEAR[method].held}


def move_of(name: str, strata: Sequence[Stratum]) -> Move:
    """What happens to one of the adapter's trained tensors, the head excluded."""
    rules, parts = [LINEAR[s.method] for s in strata], set(name.split("."))
    if any(parts & set(rule.scaled) for rule in rules):
        return "scaled"
    return "held" if any(parts & set(rule.held) for rule in rules) else "first"


def read_post(raw: Any, strata: Sequence[Stratum]) -> Post | None:
    """The post-hoc step of a candidate, from ``{"method": "wise_ft", "alpha": a}``.

    None where it changes nothing: alpha 1, or no adapter at all; with ``"where_possible": True``
    (a space with methods of both kinds) also where the methods cannot take it.

    Raises:
        UserError: an unknown step or field, alpha out of (0, 1], or methods that cannot take it.
    """
    where = "post"
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        fix = "Write {method: wise_ft, alpha: 0.5}."
        raise UserError(f"post = {raw!r} is no mapping", where, fix)
    for key in raw:
        if key not in _FIELDS:
            raise UserError(f"unknown field {key!r}", where, nearest(str(key), _FIELDS))
    if raw.get("method") not in STEPS:
        what = f"method = {raw.get('method')!r} is not possible"
        raise UserError(what, where, nearest(str(raw.get("method")), STEPS))
    alpha = raw.get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
        raise UserError(f"alpha = {alpha!r} is not possible", where, "Range: above 0 to 1.")
    if not strata or rounded(alpha) == 1:
        return None
    reason = why_not(strata)
    if reason and raw.get("where_possible") is True:
        return None
    if reason:
        what = f"wise_ft cannot be sampled with these methods: {reason}"
        raise UserError(what, where, "Leave post out, or set alpha to 1.")
    return Post("wise_ft", rounded(alpha))


def _overlap(a: Stratum, b: Stratum) -> bool:
    return a.blocks[0] <= b.blocks[1] and b.blocks[0] <= a.blocks[1]
