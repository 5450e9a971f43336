"""``build`` puts a candidate on a fork of the backbone; ``Adapted`` is the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbones.network import Network
from autopeft.candidate import Candidate
from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Scored
from autopeft.methods.registry import method_named

HEAD_STD = 0.01


class Adapted:
    """A fork of a frozen network with a candidate's adapter and a head.

    Attributes:
        network: the fork. Blocks from the readout on are gone.
        head: the classifier: timm's own module when the readout is timm's own.
        candidate: what was built.
        trainable: name -> parameter, adapter first, then the head (``<classifier>.weight`` and
            ``.bias``). Names are stable: peft's own (without its prefix) for ``lora``, plain timm
            names else.
        fixed: name -> tensor that does not train but is saved with it (a mask's places).
        first_block: lowest block that trains; the readout's block for a linear probe.
        prefix_ok: whether the state at ``first_block`` is a pure function of the image.
        extra_loss: loss [scalar] to add at each step, or None.
        after_step: to be called after each optimizer step, see ``Injection``, or None.
    """

    def __init__(
        self,
        network: Network,
        head: nn.Linear,
        candidate: Candidate,
        injections: list[Injection],
    ) -> None:
        self.network: Network = network
        self.head: nn.Linear = head
        self.candidate: Candidate = candidate
        facts = network.facts
        self.trainable: dict[str, nn.Parameter] = {}
        self.fixed: dict[str, Tensor] = {}
        for injection in injections:
            self.trainable.update(injection.trainable)
            self.fixed.update(injection.fixed)
        for name in ("weight", "bias"):
            self.trainable[f"{facts.classifier}.{name}"] = head.get_parameter(name)
        network.model.requires_grad_(False)
        for parameter in self.trainable.values():
            parameter.requires_grad_(True)
        placed = [(method_named(s.method)(**s.options), s) for s in candidate.strata]
        self.first_block = min(
            (m.first_block(s) for m, s in placed), default=candidate.readout.block
        )
        self.prefix_ok = all(m.prefix_ok(s) for m, s in placed)
        self.extra_loss = _sum([i.extra_loss for i in injections if i.extra_loss])
        self.after_step = _each([i.after_step for i in injections if i.after_step])
        self.set_train(False)

    # -- running ------------------------------------------------------------------------------

    def pooled(self, x: Tensor, start: int = 0) -> Tensor:
        """What the head reads: [B, d].

        Args:
            x: pixels (normalized float [B, 3, S, S]) when ``start`` is 0, else the state at
                boundary ``start``.
            start: 0, or a boundary up to ``first_block``.
        """
        block, pool = self.candidate.readout.block, self.candidate.readout.pool
        frozen = self.first_block if self.prefix_ok else 0
        if start > frozen:
            raise ValueError(f"blocks from {frozen} on train, so they cannot start at {start}")
        # The stem (start 0) is frozen too unless the prefix trains.
        with torch.no_grad() if self.prefix_ok else nullcontext():
            state = self.network.advance(start, x, frozen)
        state = self.network.run(state, frozen, block)
        return self.network.pooled(state, block, pool)

    def logits(self, x: Tensor, start: int = 0) -> Tensor:
        """Logits [B, C]; arguments as in ``pooled``."""
        scores: Tensor = self.head(self.pooled(x, start))
        return scores

    def set_train(self, flag: bool) -> None:
        """Training mode at and above ``first_block`` only: dropout and drop path act there.

        BatchNorm stays in eval always (``Network`` sees to it), so statistics never move.
        """
        self.network.model.eval()
        if flag:
            for prefixes in self.network.facts.prefixes[self.first_block : self.network.depth]:
                for path in prefixes:
                    self.network.model.get_submodule(path).train()

    # -- training -----------------------------------------------------------------------------

    def param_groups(
        self, lr: float, weight_decay: float, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, deepest first, in a fixed order.

        Vectors (biases, norms, layer scale) get no weight decay. With ``layer_decay`` d the rate
        at block b is lr * d^(R - b), R the readout's block; the head and final norm have lr, the
        stem lr * d^(R + 1).
        """
        readout, classifier = self.candidate.readout.block, self.network.facts.classifier
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.trainable.items():
            place = readout if name.startswith(classifier + ".") else self.network.place(name)
            distance = readout - min(place, readout)
            groups.setdefault((distance, parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": lr * layer_decay**distance,
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (distance, decays), parameters in sorted(groups.items(), key=lambda g: g[0])
        ]

    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Puts a solved head [C, d], [C] in place, e.g. the linear probe's."""
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    # -- state --------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Name -> value of everything that is saved: what trains, the head included, and what is
        fixed (detached, not copied)."""
        return {name: t.detach() for name, t in (self.trainable | self.fixed).items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over the values of ``tensors()``.

        Raises:
            UserError: names or shapes differ from what this candidate saves.
        """
        mine = {name: tuple(t.shape) for name, t in self.tensors().items()}
        theirs = {name: tuple(t.shape) for name, t in tensors.items()}
        if mine != theirs:
            differ = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
            raise UserError(
                f"{len(differ)} tensors do not fit the candidate, first {differ[0]!r}",
                "adapter",
                "The file belongs to another candidate, backbone or number of classes.",
            )
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])

    @property
    def trainable_params(self) -> int:
        """Numbers that train, the head included."""
        return sum(p.numel() for p in self.trainable.values())

    @property
    def adapter_params(self) -> int:
        """Numbers that train, the head excluded."""
        return self.trainable_params - sum(p.numel() for p in self.head.parameters())

    @property
    def adapter_bytes(self) -> int:
        """Bytes of all values as they are saved, fixed ones too (without the file's header)."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    @property
    def is_own_readout(self) -> bool:
        """Whether the head is timm's own classifier at timm's own place."""
        readout = self.candidate.readout
        return self.network.facts.is_own_readout(readout.block, readout.pool)


def build(
    network: Network,
    candidate: Candidate,
    num_outputs: int,
    seed: int,
    repeat: int,
    fixed: Mapping[str, Tensor] | None = None,
) -> Adapted:
    """Puts a candidate on a fork of a network; the given one is not touched.

    Args:
        network: the resident backbone.
        candidate: made by ``canonical`` for this backbone.
        num_outputs: number of logits C.
        seed: the settings' seed. The head depends on (seed, repeat, head shape), the adapter on
            (seed, repeat, the twin's fingerprint); torch's global generator is left as it was.
        repeat: the repeat.
        fixed: for a candidate with a ``Scored`` method: what ``prepare`` gave, or the tensors of
            a saved state.
    """
    facts, readout = network.facts, candidate.readout
    width = facts.width(readout.block, readout.pool)
    generator = torch.Generator().manual_seed(_mix("head", seed, repeat, num_outputs, width))
    if facts.is_own_readout(readout.block, readout.pool):
        fork = network.fork(num_outputs, generator)
        head = fork.classifier
        assert isinstance(head, nn.Linear), f"classifier of {facts.name} is {type(head).__name__}"
    else:
        fork = network.fork(0)
        fork.drop_blocks(readout.block)
        head = _fresh_head(width, num_outputs, generator, network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_mix("adapter", seed, repeat, candidate.twin.fingerprint))
        injections = _inject(fork, candidate, fixed or {})
    adapted = Adapted(fork, head, candidate, injections)
    if candidate.train.drop_path:
        fork.set_drop_path(candidate.train.drop_path, adapted.first_block)
        adapted.set_train(False)
    return adapted


def methods_of(candidate: Candidate) -> list[type[Method]]:
    """A candidate's methods in the order in which they are injected and folded.

    Those that replace modules come last: a method that opens plain parameters looks them up by
    plain name, which a wrapper changes.
    """
    names = dict.fromkeys(s.method for s in candidate.strata)
    return sorted((method_named(n) for n in names), key=lambda m: (m.wraps, m.name))


def _inject(
    network: Network, candidate: Candidate, fixed: Mapping[str, Tensor]
) -> list[Injection]:
    """Opens and adds all parameters of a candidate.

    Raises:
        UserError: two methods train the same numbers, or one hides what the other trains.
    """
    injections: list[Injection] = []
    owner: dict[str, str] = {}
    for method in methods_of(candidate):
        strata = [s for s in candidate.strata if s.method == method.name]
        if issubclass(method, Scored) and method(**strata[0].options).looks():
            found = method.inject_scored(network, strata, candidate.readout, fixed)
        else:
            found = method.inject(network, strata, candidate.readout)
        for name in found.trainable:
            if name in owner:
                raise _clash(owner[name], method.name, name)
            owner[name] = method.name
        injections.append(found)
    there = {id(p) for p in network.model.parameters()}
    for injection in injections:
        for name, parameter in injection.trainable.items():
            if id(parameter) not in there:
                raise _clash(owner[name], methods_of(candidate)[-1].name, name)
    return injections


def _clash(one: str, other: str, name: str) -> UserError:
    what = f"{one} and {other} both change {name}"
    return UserError(what, "candidate", "Give them separate blocks or modules.")


def _fresh_head(
    width: int, num_outputs: int, generator: torch.Generator, network: Network
) -> nn.Linear:
    """A linear head with small weights, the same as a fork's own of this shape."""
    device = next(network.model.parameters()).device
    head = nn.Linear(width, num_outputs, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        head.weight.normal_(0.0, HEAD_STD, generator=generator)
        head.bias.zero_()
    return head.to(device)


def _mix(*parts: object) -> int:
    """A seed from anything printable."""
    text = "|".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def _sum(losses: list[Callable[[], Tensor]]) -> Callable[[], Tensor] | None:
    if not losses:
        return None
    return lambda: torch.stack([loss() for loss in losses]).sum()


def _each(calls: list[Callable[[int, int], None]]) -> Callable[[int, int], None] | None:
    if not calls:
        return None

    def run(step: int, total: int) -> None:
        for call in calls:
            call(step, total)

    return run
