"""One machinery for all methods that peft has: config, wrapping, names, merging."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum

ADAPTER = "default"
LINEAR_ONLY = "adapts linear layers only"


@dataclass(frozen=True)
class Peft:
    """What peft is told, and where its layers are right.

    Attributes:
        config: name of the config class in ``peft``.
        values: config values that are no option of ours.
        patterns: option -> the config's field that lets it differ between layers; all other
            options must be equal in all strata.
        saved: attributes of a layer that do not train but are saved with it (buffers).
        on_model: parameters that peft keeps once on its model and shows on the first layer.
        convs: convolutions for which its layer is right.
        why_not: the reason for the others.
        grouped: whether it is right for convolutions of several groups too.
        tokens: whether inputs must be [B, N, D], which no CNN has.
        needs_bias: whether a layer must have a bias.
        beside: whether it only changes the base layer's output, so that other methods may act on
            the layer too.
        in_fp32: see ``Method``.
    """

    config: str
    values: Mapping[str, Any] = field(default_factory=dict)
    patterns: Mapping[str, str] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    on_model: tuple[str, ...] = ()
    convs: Literal["none", "1x1", "all"] = "none"
    why_not: str = LINEAR_ONLY
    grouped: bool = False
    tokens: bool = False
    needs_bias: bool = False
    beside: bool = False
    in_fp32: bool = False


@dataclass(frozen=True)
class Tuner(Method):
    """A method that peft has. Subclasses give ``peft``, options and ``numbers``.

    Options have the names of the config's fields. Parameters get the names under which peft saves
    them, so a folder of one such method is one that peft itself loads.
    """

    peft: ClassVar[Peft]
    # Most of peft's layers compute from the base weight itself, past what another method hangs
    # on the base layer; those that only add to the base layer's output say False.
    exclusive: ClassVar[bool] = True
    one_per_layer: ClassVar[bool] = True
    takes_modules: ClassVar[bool] = True
    wraps: ClassVar[bool] = True

    # -- what a row may say -------------------------------------------------------------------

    def numbers(self, inputs: int, outputs: int, kernel: int) -> int:
        """Parameters that train in one layer.

        Args:
            inputs: fan in; it counts the kernel of a convolution.
            outputs: outputs.
            kernel: side of the kernel, 0 for a linear layer.
        """
        raise NotImplementedError

    def once(self) -> int:
        """Parameters that all layers share."""
        return 0

    def wrong(self) -> str | None:
        """Why these options do not go together, if they do not."""
        return None

    def unfit(self, inputs: int, outputs: int, kernel: int) -> str | None:
        """Why these options do not go with a layer of this size, if they do not."""
        return None

    # -- the contract -------------------------------------------------------------------------

    @classmethod
    def make(cls, raw: Mapping[str, Any]) -> Self:
        """As ``Method.make``; options that contradict each other are refused too."""
        made = super().make(raw)
        reason = made.wrong()
        if reason:
            raise UserError(reason, f"method {cls.name}")
        return made

    def options(self, facts: Facts) -> dict[str, Any]:
        """All options.

        Raises:
            UserError: the backbone has no layer of a kind that this method can adapt.
        """
        if self.takes_modules and not any(
            shapes[block] and self._can(facts, name, block)
            for name, shapes in self.layers_of(facts).items()
            for block in range(facts.depth)
        ):
            what = f"it {self.peft.why_not}; {facts.name} has no layer for it"
            raise UserError(what, f"method {self.name}", "Choose another method.")
        return super().options(facts)

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """Modules of a kind that it can adapt."""
        return tuple(
            name
            for name, shapes in self.layers_of(facts).items()
            if shapes[block] and self._can(facts, name, block)
        )

    def check(self, facts: Facts, stratum: Stratum) -> None:
        """Refuses layers of a size that the options do not go with."""
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            for name in self._chosen(facts, stratum, block):
                inputs, outputs = self.layers_of(facts)[name][block]
                reason = self.unfit(inputs, outputs, kernel_of(facts, name, block))
                if reason:
                    size = f"{name} of block {block} has {inputs} inputs and {outputs} outputs"
                    raise UserError(f"{reason}; {size}", f"method {self.name}")

    @classmethod
    def check_all(cls, strata: Sequence[Stratum]) -> None:
        """Refuses several ranges where all layers share one vector."""
        if len(strata) > 1 and cls(**strata[0].options).once():
            what = "all its layers share one vector, so its blocks must be one range"
            raise UserError(what, f"method {cls.name}", "Give it one range of blocks.")

    @classmethod
    def layers_of(cls, facts: Facts) -> Mapping[str, tuple[tuple[int, ...], ...]]:
        """The modules of a backbone, those of several groups only where peft is right for them."""
        return {**facts.modules, **facts.grouped} if cls.takes_grouped else facts.modules

    def _can(self, facts: Facts, name: str, block: int) -> bool:
        kernel = kernel_of(facts, name, block)
        if self.peft.needs_bias and not facts.module_biases[name][block]:
            return False
        if kernel == 0:
            return not (self.peft.tokens and facts.family == "cnn")
        return self.peft.convs == "all" or (self.peft.convs == "1x1" and kernel == 1)

    def _chosen(self, facts: Facts, stratum: Stratum, block: int) -> list[str]:
        """Modules of a block that a stratum means: a range may name what some blocks lack."""
        return [name for name in self.sites(facts, block) if name in stratum.modules]

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """Sum of ``numbers`` over the layers, and ``once``."""
        total = self.once()
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            for name in self._chosen(facts, stratum, block):
                inputs, outputs = self.layers_of(facts)[name][block]
                total += self.numbers(inputs, outputs, kernel_of(facts, name, block))
        return total

    # -- peft ---------------------------------------------------------------------------------

    @classmethod
    def config_values(cls, network: Network, strata: Sequence[Stratum]) -> dict[str, Any]:
        """The config's fields, placement excluded: the first stratum's, patterns for the rest."""
        first = strata[0].options
        values = {**cls.peft.values, **{k: plain(v) for k, v in first.items()}}
        for option, name in cls.peft.patterns.items():
            differ = [s for s in strata[1:] if s.options[option] != first[option]]
            values[name] = {
                regex(cls.targets(network, [s])): plain(s.options[option]) for s in differ
            }
        return values

    @classmethod
    def peft_config(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Any:
        """One peft config for all strata.

        With timm's own head the classifier is in ``modules_to_save``, so that a folder holds it
        as peft expects.
        """
        import peft

        facts = network.facts
        own = facts.is_own_readout(readout.block, readout.pool)
        with quiet():
            return getattr(peft, cls.peft.config)(
                target_modules=regex(cls.targets(network, strata)),
                modules_to_save=[facts.classifier] if own else None,
                **cls.config_values(network, strata),
            )

    @classmethod
    def peft_name(cls, name: str) -> str:
        """Name in a peft folder of what is called ``name`` here."""
        for shared in cls.peft.on_model:
            found = re.search(rf"\.({shared}(\.\d+)?)$", name)
            if found:
                return f"base_model.{found[1]}"
        return super().peft_name(name)

    @classmethod
    def targets(cls, network: Network, strata: Sequence[Stratum]) -> list[str]:
        """Paths of the modules that the strata name.

        Raises:
            UserError: there is none.
        """
        paths: list[str] = []
        for stratum in strata:
            method = cls(**stratum.options)
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                names = method._chosen(network.facts, stratum, block)
                paths += [network.module_path(block, name) for name in names]
        if not paths:
            where, fix = f"method {cls.name}", "Name other blocks or modules."
            raise UserError("has no module to adapt", where, fix)
        return paths

    @classmethod
    def tuner_class(cls) -> Any:
        """peft's class for this method."""
        from peft import PeftType
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        return PEFT_TYPE_TO_TUNER_MAPPING[PeftType[cls.name.upper()]]

    @classmethod
    def rewrites(cls, strata: Sequence[Stratum]) -> bool:
        """Whether peft writes into the base weights, so that they must be copied first."""
        return False

    @classmethod
    def wrap(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Any:
        """Wraps the target modules with one peft config; returns peft's tuner."""
        import torch

        expected = cls.targets(network, strata)
        _check_free(network, expected, cls.name)
        if cls.rewrites(strata):
            for path in expected:
                module = network.model.get_submodule(path)
                network.own(f"{path}.{name}" for name, _ in list(module.named_parameters()))
        # Off is the default; said aloud, torch does not warn of it when a tuner is sparse.
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
        config = cls.peft_config(network, strata, readout)
        # The head is ours; in the config it only tells peft where to find it in a saved folder.
        config.modules_to_save = None
        for path in expected:
            network.model.get_submodule(path).requires_grad_(False)
        with quiet():
            tuner = cls.tuner_class()(network.model, config, ADAPTER)
        # peft leaves its config on the model; a plain timm model has no such attribute.
        del network.model.peft_config
        hits = set(cls.layers(network))
        assert hits == set(expected), f"peft wrapped {sorted(hits ^ set(expected))}"
        return tuner

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Wraps the target modules of all strata."""
        before = list(network.model.parameters())
        cls.wrap(network, strata, readout)
        return cls.collect(network, before)

    @classmethod
    def collect(cls, network: Network, before: Sequence[nn.Parameter]) -> Injection:
        """What peft added: its parameters, and what else it saves.

        Args:
            network: with peft's layers in it.
            before: the parameters that it had without them, alive, so that no id is used twice.
        """
        old = {id(parameter) for parameter in before}
        layers = cls.layers(network)
        trainable = {
            cls.plain_name(name, list(layers)): parameter
            for name, parameter in network.model.named_parameters()
            if parameter.requires_grad and id(parameter) not in old
        }
        return Injection(trainable, fixed=cls._saved(layers))

    @classmethod
    def layers(cls, network: Network) -> dict[str, nn.Module]:
        """Path -> peft's layer, in network order."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        # By package: AdaLoRA's layers are LoRA layers too.
        package = cls.tuner_class().__module__.removesuffix("model")
        return {
            name: module
            for name, module in network.model.named_modules()
            if isinstance(module, BaseTunerLayer) and type(module).__module__.startswith(package)
        }

    @classmethod
    def plain_name(cls, name: str, paths: Sequence[str]) -> str:
        """A parameter's name without the adapter's, as peft saves it.

        A numbered parameter of peft's model (``tinylora_v``) gets the path of the layer it is for.
        """
        name = re.sub(rf"\.{ADAPTER}(?=\.|$)", "", name)
        for shared in cls.peft.on_model:
            found = re.search(rf"\.{shared}\.(\d+)$", name)
            if found:
                return f"{paths[int(found[1])]}.{shared}.{found[1]}"
        return name

    @classmethod
    def _saved(cls, layers: Mapping[str, Any]) -> dict[str, Tensor]:
        """What does not train but is saved."""
        from torch import nn

        found: dict[str, Tensor] = {}
        for path, layer in layers.items():
            for attribute in cls.peft.saved:
                value = getattr(layer, attribute)[ADAPTER]
                if isinstance(value, nn.Module):
                    inner = {f".{k}": v for k, v in value.named_buffers()}
                else:
                    inner = {"": value}
                found |= {f"{path}.{attribute}{k}": v for k, v in inner.items()}
        return found

    @classmethod
    def fold(cls, network: Network) -> None:
        """Merges every layer into its base layer and puts the base layer back."""
        for path, layer in cls.layers(network).items():
            module: Any = layer
            # Some merge in place, and the tensors are the resident backbone's.
            for parameter in module.get_base_layer().parameters():
                parameter.data = parameter.data.clone()
            module.merge(safe_merge=True)
            parent, _, leaf = path.rpartition(".")
            setattr(network.model.get_submodule(parent), leaf, module.get_base_layer())


@contextmanager
def quiet() -> Iterator[None]:
    """Without peft's warnings of what is meant: frames drawn again from a key, layers of timm's
    own classes, no CUDA extension. What they could break is checked by conformance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def regex(paths: Sequence[str]) -> str:
    """An anchored pattern that matches exactly these paths, blocks with equal rest as one."""
    rests: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        found = re.match(r"(.*?\.)(\d+(?:\.\d+)?)(\..*)", path)
        key = (found[1], found[3]) if found else (path, "")
        rests.setdefault(key, []).append(found[2] if found else "")
    parts: dict[tuple[str, str], list[str]] = {}
    for (start, rest), blocks in rests.items():
        numbers = "|".join(re.escape(b) for b in blocks)
        parts.setdefault((start, numbers), []).append(re.escape(rest))
    return "|".join(
        f"{re.escape(start)}({numbers})({'|'.join(ends)})"
        for (start, numbers), ends in parts.items()
    )


def plain(value: Any) -> Any:
    """A number as peft's configs want it: whole ones as int."""
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def kernel_of(facts: Facts, name: str, block: int) -> int:
    """Side of a convolution's kernel, 0 for a linear layer."""
    return facts.kernels[name][block] if facts.kernels else 0


def _check_free(network: Network, paths: Sequence[str], method: str) -> None:
    """Refuses a second wrapper on one layer: neither merging nor the names would be right."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path in paths:
        if isinstance(network.model.get_submodule(path), BaseTunerLayer):
            what = f"{path} already has another method of peft's"
            raise UserError(what, f"method {method}", "Give them separate blocks or modules.")
