"""Delta-CoMe: what full fine-tuning changed, in a sixteenth of its bytes or less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from autopeft.backbones.network import Network
from autopeft.errors import UserError
from autopeft.posthoc.folders import Source, State, open_all, share

_STEP = "delta_come"
# (bits of an entry, so many singular vectors), largest first; None = as many as bytes allow
MIXED: tuple[tuple[int, int | None], ...] = ((8, 2), (3, 32), (2, None))
GROUP = 128  # entries that share a scale
_HALF = 2  # bytes of a number in the format that the ratio is counted in, fp16


def pack(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits, ``bits`` bits each: uint8 [ceil(n bits / 8)]."""
    places = torch.arange(bits, dtype=torch.uint8)
    stream = (codes.reshape(-1, 1).to(torch.uint8) >> places & 1).reshape(-1)
    stream = torch.cat([stream, stream.new_zeros(-len(stream) % 8)]).view(-1, 8)
    return (stream << torch.arange(8, dtype=torch.uint8)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The numbers that ``pack`` was given: uint8 [count]."""
    stream = (packed.view(-1, 1) >> torch.arange(8, dtype=torch.uint8) & 1).reshape(-1)
    stream = stream[: count * bits].view(count, bits)
    return (stream << torch.arange(bits, dtype=torch.uint8)).sum(1).to(torch.uint8)


def rounded_groups(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A vector rounded to 2^bits even steps in each group: codes [n], (lowest, step) fp16 [g, 2].

    Each group of ``GROUP`` entries spans from its smallest to its largest.
    """
    filled = torch.cat([x, x[-1:].expand(-len(x) % GROUP)]).view(-1, GROUP)
    low = filled.min(1).values.half()
    span = filled.max(1).values - low.to(x.dtype)
    step = (span / (2**bits - 1)).half()
    width = torch.where(step > 0, step, torch.ones_like(step)).to(x.dtype)[:, None]
    codes = ((filled - low.to(x.dtype)[:, None]) / width).round().clamp(0, 2**bits - 1)
    return codes.reshape(-1)[: len(x)], torch.stack([low, step], 1)


def restored_groups(codes: Tensor, scales: Tensor) -> Tensor:
    """What ``rounded_groups`` stands for, fp64 [n]."""
    which = torch.arange(len(codes)) // GROUP
    low, step = scales.double()[which].unbind(1)
    return low + codes.double() * step


def schedule(
    shape: Sequence[int], bits: Sequence[tuple[int, int | None]], ratio: float | None
) -> list[int]:
    """Bits of each singular vector of an [o, i] matrix that is kept, largest first."""
    most, found = min(shape), list[int]()
    budget = float("inf") if ratio is None else ratio * _HALF * shape[0] * shape[1]
    for width, count in bits:
        for _ in range(most if count is None else count):
            numbers = sum(shape)
            groups = sum(-(-side // GROUP) for side in shape)
            budget -= numbers * 4 if width == 32 else -(-numbers * width // 8) + 4 * groups
            budget -= 4  # the singular value
            if len(found) == most or budget < 0:
                return found
            found.append(width)
    return found


def compressed(
    change: Mapping[str, Tensor],
    bits: Sequence[tuple[int, int | None]] = MIXED,
    ratio: float | None = 1 / 16,
) -> State:
    """Changes of tensors as few bits; those with fewer than two dimensions as they are, fp32.

    Args:
        change: W1 - W0 by name; kernels are seen as [outputs, the rest].
        bits: (bits of an entry, number of singular vectors), largest first; 2 to 8, or 32 = fp32.
        ratio: bytes of a matrix over its bytes in fp16; None = no limit.
    """
    found: State = {}
    for name, value in change.items():
        if value.ndim < 2:
            found[f"{name}|plain"] = value.float()
            continue
        u, s, vt = torch.linalg.svd(value.double().flatten(1), full_matrices=False)
        widths = schedule((u.shape[0], vt.shape[1]), bits, ratio)
        widths = widths[: int((s > 0).sum())]
        found[f"{name}|values"] = s[: len(widths)].float()
        found[f"{name}|bits"] = torch.tensor(widths, dtype=torch.uint8)
        for side, vectors in (("left", u.t()), ("right", vt)):
            for width in dict.fromkeys(widths):
                chosen = [v for v, w in zip(vectors, widths, strict=False) if w == width]
                found |= _stored(f"{name}|{side}{width}", chosen, width)
    return found


def restored(small: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> State:
    """The changes that ``compressed`` kept, fp64; ``shapes`` by name."""
    found: State = {}
    for name, shape in shapes.items():
        if f"{name}|plain" in small:
            found[name] = small[f"{name}|plain"].double()
            continue
        widths = small[f"{name}|bits"].tolist()
        inputs = int(torch.Size(shape).numel() // shape[0])
        sides = []
        for side, length in (("left", shape[0]), ("right", inputs)):
            parts = [
                _read(f"{name}|{side}{width}", small, widths.count(width), length, width)
                for width in dict.fromkeys(widths)
            ]
            sides.append(torch.cat(parts) if parts else torch.zeros(0, length).double())
        left, right = sides
        values = small[f"{name}|values"].double()
        found[name] = ((left.t() * values) @ right).view(*shape)
    return found


def delta_come(
    source: Source,
    bits: Sequence[tuple[int, int | None]] = MIXED,
    ratio: float | None = 1 / 16,
    weights: str | None = None,
    network: Network | None = None,
) -> tuple[bytes, State]:
    """What training changed, compressed: fewer bits for weaker singular vectors, then none.

    For results of full fine-tuning; small adapters are smaller as they are. The paper's
    calibration on data (GPTQ) is left out: entries are rounded to the nearest.

    Paper: Ping et al. 2024, arXiv:2406.08903.

    Args:
        source: the trained adapter.
        bits: 8 bits for the first 2 singular vectors, 3 for the next 32, 2 for the rest.
        ratio: bytes of a matrix over its bytes in fp16, above 0; None = no limit. Vectors are
            kept, largest first, until it is reached.
        weights: as in ``load_adapter``.
        network: as in ``load_adapter``.

    Returns:
        Content of a safetensors file, for ``delta_come_restored``; and the plain timm state dict
        that it gives. Check the latter's scores against the adapter's: it is an approximation.

    Raises:
        UserError: the result is no smaller than the adapter, or the method cannot be merged.
    """
    for width, _ in bits:
        if width not in (*range(2, 9), 32):
            raise UserError(f"{width} bits are not possible", _STEP, "From 2 to 8, or 32.")
    if ratio is not None:
        ratio = share(ratio, "ratio", _STEP, 1e-4, 4.0)
    found = open_all([source], None, 1, _STEP, weights, network)
    trained, base = found.trained[0], found.base
    change = {
        k: trained[k].double() - v.double()
        for k, v in base.items()
        if v.is_floating_point() and not found.is_head(k) and not torch.equal(trained[k], v)
    }
    small = compressed(change, bits, ratio)
    small |= {f"{name}|whole": value for name, value in trained.items() if found.is_head(name)}
    content = to_bytes({name: value.contiguous() for name, value in small.items()})
    size = found.models[0].adapted.adapter_bytes
    if len(content) >= size:
        what = f"it would take {len(content):,} bytes, the adapter takes {size:,}"
        raise UserError(what, _STEP, "Keep the adapter: this is for full fine-tuning.")
    return content, delta_come_restored(content, base)


def delta_come_restored(content: bytes, base: Mapping[str, Tensor]) -> State:
    """Plain weights from the frozen ones and what ``delta_come`` gave.

    Args:
        content: its first result.
        base: state dict of the frozen timm model; its head is replaced.
    """
    small, state = from_bytes(content), {k: v.clone() for k, v in base.items()}
    parts = {name.partition("|")[0] for name in small if not name.endswith("|whole")}
    changes = restored(small, {name: tuple(base[name].shape) for name in parts})
    for name, change in changes.items():
        state[name] = (base[name].double() + change).float()
    whole = {n.removesuffix("|whole"): v for n, v in small.items() if n.endswith("|whole")}
    return state | whole


def _stored(name: str, vectors: Sequence[Tensor], bits: int) -> State:
    """Singular vectors of one width, end to end."""
    if bits == 32:
        return {name: torch.stack(list(vectors)).float()}
    pairs = [rounded_groups(v, bits) for v in vectors]
    codes = torch.cat([c for c, _ in pairs])
    return {name: pack(codes, bits), f"{name}|scales": torch.cat([s for _, s in pairs])}


def _read(name: str, small: Mapping[str, Tensor], count: int, length: int, bits: int) -> Tensor:
    """``count`` vectors, fp64 [count, length]."""
    if bits == 32:
        return small[name].double()
    codes = unpack(small[name], bits, count * length).view(count, length)
    scales = small[f"{name}|scales"].view(count, -1, 2)
    return torch.stack([restored_groups(c, s) for c, s in zip(codes, scales, strict=True)])
