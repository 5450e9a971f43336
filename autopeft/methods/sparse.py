"""Sparse deltas, W' = W + scatter(places, v): score x granularity x budget x scope."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Rate, Scored, choice, flag, integer, number
from autopeft.methods.settle import changed, clipped

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum
    from autopeft.methods.method import Scoring


@dataclass(frozen=True)
class Recipe:
    """How the entries that train are chosen; one for each setting of a method's options.

    Attributes:
        score: ``gradient`` |sum over images of dLoss/dW|; ``delta`` |how far full fine-tuning
            moves W|; ``abs_small`` -|W|; ``abs_large`` |W|; ``fisher`` mean over images of
            (dLoss/dW)².
        granularity: ``element``, ``row`` (so many of each output's weights) or ``block`` (tiles).
        share: share of the weights in scope, of elements or tiles.
        per_row: entries of each row.
        tile: side of a tile.
        tile_score: ``mean_abs``, ``abs_mean`` or ``l2``.
        ranking: over all layers together (``global``) or in each layer.
        train_bias: whether the layers' biases train too.
        score_images: training images that a score looks at, at most.
        score_loss: ``task`` with the linear probe's head, or ``supcon`` on the features.
        phase_epochs: epochs of full fine-tuning (``delta``).
        phase_lr: its learning rate.
    """

    score: str = "gradient"
    granularity: str = "element"
    share: float = 0.01
    per_row: int = 1
    tile: int = 32
    tile_score: str = "mean_abs"
    ranking: str = "global"
    train_bias: bool = False
    score_images: int = 1024
    score_loss: str = "task"
    phase_epochs: int = 1
    phase_lr: float = 2e-5

    @property
    def unit(self) -> int:
        """Entries that are chosen at once."""
        return self.tile**2 if self.granularity == "block" else 1

    def units(self, total: int) -> int:
        """How many of ``total`` elements or tiles are taken: the share, at least one."""
        return min(total, max(1, int(self.share * total + 0.5)))

    def count(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """Entries that are chosen in layers of these (inputs, outputs)."""
        if self.granularity == "row":
            return sum(outputs * min(self.per_row, inputs) for inputs, outputs in shapes)
        totals = [inputs * outputs // self.unit for inputs, outputs in shapes]
        if self.ranking == "layer":
            return sum(map(self.units, totals)) * self.unit
        return self.units(sum(totals)) * self.unit


@dataclass(frozen=True)
class SparseDelta(Scored):
    """What all methods here do: a subclass has options and says by ``recipe`` what they mean.

    Each layer keeps the flat places of its chosen entries (int32, saved) and one number for each,
    zero at the start. The layers are those that ``modules`` and ``blocks`` name; embeddings,
    tokens and norms never train. Strata of one method with equal options are ranked together.
    """

    conflicts: ClassVar[tuple[str, ...]] = ("difffit",)
    family: ClassVar[str] = "sparse"
    takes_modules: ClassVar[bool] = True

    def recipe(self) -> Recipe:
        """How the entries are chosen."""
        raise NotImplementedError

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options.

        Raises:
            UserError: no layer can be cut into tiles.
        """
        if not any(self.sites(facts, block) for block in range(facts.depth)):
            what = f"tile = {self.recipe().tile} divides no layer of {facts.name}"
            raise UserError(what, f"method {self.name}", "Name a divisor of its widths.")
        return super().options(facts)

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """Where the layers have no bias, no bias trains; one layer is ranked in one way.

        Strata with equal options are ranked together, so options change in all of them or none.
        """
        if any(s.options != strata[0].options for s in strata):
            return strata
        method, idle = cls(**strata[0].options), dict[str, Any]()
        shapes = [shape for s in strata for shape in method.shapes(facts, s)]
        default = cls.defaults()
        if "ranking" in default and len(shapes) == 1:
            idle["ranking"] = default["ranking"]
        if "train_bias" in default and not any(_biases(facts, s) for s in strata):
            idle["train_bias"] = default["train_bias"]
        found = [changed(s, **idle) for s in strata]
        if "per_row" in default:
            most = max(inputs for inputs, _ in shapes)
            found = [clipped(cls, s, "per_row", most) for s in found]
        return found

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """All modules; with tiles those whose both sides a tile divides."""
        names, recipe = super().sites(facts, block), self.recipe()
        if recipe.granularity != "block":
            return names
        return tuple(
            n for n in names if not any(side % recipe.tile for side in facts.modules[n][block])
        )

    def shapes(self, facts: Facts, stratum: Stratum) -> list[tuple[int, ...]]:
        """(inputs, outputs) of the stratum's layers."""
        return [
            facts.modules[name][block]
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1)
            for name in stratum.modules
            if name in self.sites(facts, block)
        ]

    def chosen(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """Entries that train in layers of these (inputs, outputs)."""
        return self.recipe().count(shapes)

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """The chosen entries; with ``train_bias`` the biases of the layers too."""
        total = self.chosen(self.shapes(facts, stratum))
        if self.recipe().train_bias:
            total += _biases(facts, stratum)
        return total

    @classmethod
    def prepare(
        cls, scoring: Scoring, strata: Sequence[Stratum], readout: Readout
    ) -> dict[str, Tensor]:
        """Scores the layers and chooses the entries: ``PATH.METHOD_index`` -> flat places."""
        import torch

        from autopeft.methods.scores import paths_of

        facts, found = scoring.network.facts, dict[str, Any]()
        for method, group in cls.groups(strata):
            count = sum(method.chosen(method.shapes(facts, s)) for s in group)
            paths = paths_of(scoring.network, group)
            for path, places in zip(
                paths, method.places(scoring, group, readout, paths, count), strict=True
            ):
                if len(places):
                    found[f"{path}.{cls.name}_index"] = places.to(torch.int32)
        return found

    def places(
        self,
        scoring: Scoring,
        strata: Sequence[Stratum],
        readout: Readout,
        paths: Sequence[str],
        count: int,
    ) -> list[Tensor]:
        """Flat places of the chosen entries of each layer, ascending."""
        from autopeft.methods.scores import chosen, scored

        recipe = self.recipe()
        scores = scored(scoring, recipe, self.name, paths, strata, readout)
        return chosen(scores, recipe, count)

    @classmethod
    def inject_scored(
        cls,
        network: Network,
        strata: Sequence[Stratum],
        readout: Readout,
        fixed: Mapping[str, Tensor],
    ) -> Injection:
        """Opens the chosen entries."""
        import torch

        from autopeft.methods.delta import open_entries
        from autopeft.methods.scores import paths_of

        trainable, kept = dict[str, Any](), dict[str, Any]()
        for method, group in cls.groups(strata):
            recipe = method.recipe()
            for path in paths_of(network, group):
                name = f"{path}.{cls.name}_index"
                has_bias = network.model.get_submodule(path).bias is not None
                biased = has_bias and recipe.train_bias
                index = fixed.get(name, torch.empty(0, dtype=torch.int32))
                tile = recipe.tile if recipe.granularity == "block" and len(index) else 0
                if len(index) or biased:
                    trainable |= open_entries(network, path, cls.name, index, biased, tile)
                if len(index):
                    kept[name] = network.model.get_buffer(name)
        if not kept:
            raise ValueError(f"{cls.name} has no chosen entries: call look() before build()")
        return Injection(trainable, kept)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Adds the values to the plain weights."""
        from autopeft.methods.delta import fold

        fold(network, cls.name)

    @classmethod
    def groups(cls, strata: Sequence[Stratum]) -> list[tuple[SparseDelta, list[Stratum]]]:
        """Strata with equal options, which are ranked together."""
        groups: dict[str, list[Stratum]] = {}
        for stratum in strata:
            groups.setdefault(json.dumps(dict(stratum.options), sort_keys=True), []).append(
                stratum
            )
        return [(cls(**group[0].options), group) for group in groups.values()]


@dataclass(frozen=True)
class Sparse(SparseDelta):
    """The engine with all its options; the other methods of the family are settings of it.

    Options that a score or a granularity does not read hold their default. On elements, ranking
    by |gradient| and by the squared gradient of a batch is the same; ``fisher`` squares each
    image's gradient before the mean, which is not. ``mean_abs`` tiles are also those of the L1
    norm.

    Attributes:
        score: what an entry is ranked by; see ``Recipe``.
        granularity: single elements, so many in each row, or square tiles.
        share: share of the weights in scope that trains (``element``, ``block``).
        per_row: entries of each row (``row``).
        tile: side of a tile (``block``).
        tile_score: how a tile's score comes from its entries'.
        ranking: ``global`` over all layers, or the same share of each ``layer``.
        train_bias: the layers' biases train too, where they have any.
        score_images: training images that ``gradient`` and ``fisher`` look at (``fisher``: one at
            a time, up to 512).
        score_loss: ``task``, or ``supcon``, which needs no head (``gradient``).
        phase_epochs: epochs of the full fine-tuning before (``delta``).
        phase_lr: its learning rate.
    """

    name: ClassVar[str] = "sparse"
    paper: ClassVar[str] = "none of its own; the family's common engine"
    summary: ClassVar[str] = "Trains a chosen few of the weights, by any score and pattern."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": Rate(1e-3, 1e-5, 1e-2)}

    score: str = choice("gradient", "delta", "abs_small", "abs_large", "fisher")
    granularity: str = choice("element", "row", "block")
    share: float = number(0.01, 1e-5, 0.9)
    per_row: int = integer(1, 1, 1024)
    tile: int = integer(32, 2, 256)
    tile_score: str = choice("mean_abs", "abs_mean", "l2")
    ranking: str = choice("global", "layer")
    train_bias: bool = flag()
    score_images: int = integer(512, 1, 100_000)
    score_loss: str = choice("task", "supcon")
    phase_epochs: int = integer(1, 1, 100)
    phase_lr: float = number(2e-5, 1e-7, 1e-1)

    def recipe(self) -> Recipe:
        """The options as they are."""
        return Recipe(**vars(self))

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options; those that are not read hold their default.

        Raises:
            UserError: as in ``SparseDelta``; more than 512 images for ``fisher``.
        """
        options, idle = super().options(facts), set[str]()
        if self.score == "fisher" and self.score_images > 512:
            what = f"score_images = {self.score_images} is not possible with fisher"
            raise UserError(what, "method sparse", "It goes image by image: from 1 to 512.")
        idle |= {"share", "ranking"} if self.granularity == "row" else {"per_row"}
        idle |= set() if self.granularity == "block" else {"tile", "tile_score"}
        idle |= set() if self.score in ("gradient", "fisher") else {"score_images"}
        idle |= set() if self.score == "gradient" else {"score_loss"}
        idle |= set() if self.score == "delta" else {"phase_epochs", "phase_lr"}
        default = self.defaults()
        return {k: default[k] if k in idle else v for k, v in options.items()}


def _biases(facts: Facts, stratum: Stratum) -> int:
    """Numbers in the biases of a stratum's layers."""
    blocks = range(stratum.blocks[0], stratum.blocks[1] + 1)
    return sum(facts.module_biases[name][b] for b in blocks for name in stratum.modules)
