"""The published sparse methods, as settings of the engine in ``sparse``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.methods.method import Injection, Rate, choice, flag, integer, number
from autopeft.methods.settle import clipped
from autopeft.methods.sparse import Recipe, SparseDelta

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum
    from autopeft.methods.method import Scoring

SMALL = Rate(2e-5, 1e-5, 1e-3)


@dataclass(frozen=True)
class Gps(SparseDelta):
    """Gradient-based parameter selection: of each output the weights with the largest gradient.

    Differs from the paper: the stem's convolution stays frozen; the score's loss is the task's
    with the fitted probe as head, or the paper's contrastive loss on one plain view an image
    (theirs: two augmented ones).

    Attributes:
        per_row: weights of each output that train.
        score_images: training images that the score looks at.
        score_loss: ``task`` or ``supcon``.
        train_bias: the layers' biases train too, as in the paper.
    """

    name: ClassVar[str] = "gps"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2312.10136"
    summary: ClassVar[str] = "Trains the weight with the largest gradient of each output."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": Rate(3e-3, 1e-4, 1e-2)}

    per_row: int = integer(1, 1, 64)
    score_images: int = integer(1024, 1, 100_000)
    score_loss: str = choice("task", "supcon")
    train_bias: bool = flag(True)

    def recipe(self) -> Recipe:
        """|Gradient|, so many in each row."""
        return Recipe("gradient", "row", **vars(self))


@dataclass(frozen=True)
class LtSft(SparseDelta):
    """Lottery-ticket sparse fine-tuning: what full fine-tuning moves most trains, from W again.

    Norms and biases are frozen in both phases, and there is one iteration. The first phase is
    training and counts into the trial's seconds; trials that differ in ``share`` share it.

    Attributes:
        share: share of the weights in scope (its code: 14.2 million of a language model's, 8 % of
            multilingual BERT).
        phase_epochs: epochs of the first phase.
        phase_lr: its learning rate.
        l1: weight of |v|, which pulls back to the pretrained weights.
    """

    name: ClassVar[str] = "lt_sft"
    paper: ClassVar[str] = "Ansell et al. 2021, arXiv:2110.07560"
    summary: ClassVar[str] = "Trains the weights that full fine-tuning moved most."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": SMALL}

    share: float = number(0.01, 1e-4, 0.5)
    phase_epochs: int = integer(1, 1, 100)
    phase_lr: float = number(2e-5, 1e-7, 1e-2)
    l1: float = number(0.0, 0.0, 10.0)

    def recipe(self) -> Recipe:
        """|theta_1 - theta_0|, all layers ranked together."""
        return Recipe(
            "delta", share=self.share, phase_epochs=self.phase_epochs, phase_lr=self.phase_lr
        )

    @classmethod
    def inject_scored(
        cls,
        network: Network,
        strata: Sequence[Stratum],
        readout: Readout,
        fixed: Mapping[str, Tensor],
    ) -> Injection:
        """Opens the chosen entries, with their L1 norm as a loss."""
        parts, losses = Injection({}), list[Callable[[], Any]]()
        for method, group in cls.groups(strata):
            assert isinstance(method, LtSft)
            part = super().inject_scored(network, group, readout, fixed)
            parts = Injection(parts.trainable | part.trainable, parts.fixed | part.fixed)
            if method.l1:
                losses.append(_l1(list(part.trainable.values()), method.l1))
        extra = (lambda: sum(loss() for loss in losses)) if losses else None
        return Injection(parts.trainable, parts.fixed, extra)


@dataclass(frozen=True)
class Smt(SparseDelta):
    """Sparse matrix tuning: the square tiles with the largest mean gradient train whole.

    The paper's tiles are 256 wide in matrices of 4,096 and more, and its gradients come from the
    first 100 steps; here the tile divides the backbone's widths and the gradients come from that
    many images in one pass. Layers that the tile does not divide are left out.

    Attributes:
        share: share of the tiles in scope.
        tile: side of a tile.
        tile_score: mean of the absolute values, absolute value of the mean, or L2 norm.
        ranking: tiles of all layers together, or the same share of each.
        score_images: training images that the score looks at.
    """

    name: ClassVar[str] = "smt"
    paper: ClassVar[str] = "He et al. 2024, arXiv:2405.15525"
    summary: ClassVar[str] = "Trains whole square tiles of the weights, by their gradient."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": Rate(1e-4, 1e-5, 1e-3)}

    share: float = number(0.0084, 1e-4, 0.5)
    tile: int = integer(32, 2, 256)
    tile_score: str = choice("mean_abs", "abs_mean", "l2")
    ranking: str = choice("global", "layer")
    score_images: int = integer(1024, 1, 100_000)

    def recipe(self) -> Recipe:
        """|Gradient| of tiles."""
        return Recipe("gradient", "block", **vars(self))


@dataclass(frozen=True)
class LargeWeight(SparseDelta):
    """The weights with the largest absolute value train; nothing is looked at but the weights.

    In each layer the same entries as peft's ``supertuning`` at sparsity 1 - share when ranked by
    layer; here also on convolutions, and over all layers together.

    Attributes:
        share: share of the weights in scope.
        ranking: over all layers together, or the same share of each.
    """

    name: ClassVar[str] = "large_weight"
    paper: ClassVar[str] = "none; a control for scores that look at data"
    summary: ClassVar[str] = "Trains the weights with the largest absolute value."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": Rate(1e-3, 1e-5, 5e-3)}

    share: float = number(1e-3, 1e-5, 0.5)
    ranking: str = choice("global", "layer")

    def recipe(self) -> Recipe:
        """|W|."""
        return Recipe("abs_large", **vars(self))


@dataclass(frozen=True)
class FisherMask(SparseDelta):
    """The weights with the largest empirical Fisher information train.

    The score is the mean over images of the squared gradient of each image's own loss, with the
    true labels and the fitted probe as head (a batch's squared gradient would be another, biased
    score). Backpropagation trains the mask, in the place of the zeroth-order steps and the 4-bit
    rest of the work that ranked on pretraining data (Guo et al. 2024, arXiv:2406.02913).

    Attributes:
        share: share of the weights in scope.
        score_images: training images, one forward and backward pass each.
    """

    name: ClassVar[str] = "fisher_mask"
    paper: ClassVar[str] = "Sung et al. 2021, arXiv:2111.09839"
    summary: ClassVar[str] = "Trains the weights with the largest Fisher information."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": Rate(1e-3, 1e-5, 1e-2)}

    share: float = number(1e-3, 1e-5, 0.5)
    score_images: int = integer(256, 1, 512)

    def recipe(self) -> Recipe:
        """Fisher information, all layers ranked together."""
        return Recipe("fisher", **vars(self))


@dataclass(frozen=True)
class FedSelectRule(SparseDelta):
    """A mask that grows by rounds: fine-tune all, keep what moved most, rewind the rest.

    Only the rule of FedSelect, without federation: in each round the share ``grow`` of what is
    left joins, up to 80 % of the weights in scope. What trains afterwards starts at zero again.

    Attributes:
        grow: share of the remaining weights that joins in a round.
        rounds: how many.
        phase_epochs: epochs of a round (source: 3).
        phase_lr: its learning rate.
    """

    name: ClassVar[str] = "fedselect_rule"
    paper: ClassVar[str] = "Tamirisa et al. 2024, arXiv:2404.02478"
    summary: ClassVar[str] = "Trains a mask that grew by rounds of fine-tuning."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": SMALL, "sgd": Rate(5e-2, 1e-3, 1e-1)}
    most: ClassVar[float] = 0.8

    grow: float = number(0.25, 0.01, 0.8)
    rounds: int = integer(1, 1, 20)
    phase_epochs: int = integer(1, 1, 100)
    phase_lr: float = number(2e-5, 1e-7, 1e-1)

    def recipe(self) -> Recipe:
        """|theta_1 - theta_0| by rounds."""
        return Recipe("delta", phase_epochs=self.phase_epochs, phase_lr=self.phase_lr)

    def steps(self, total: int) -> list[int]:
        """Entries that join in each round, of ``total``."""
        joined: list[int] = []
        for _ in range(self.rounds):
            taken = sum(joined)
            fresh = max(1, int(self.grow * (total - taken) + 0.5))
            joined.append(min(fresh, max(1, int(self.most * total)) - taken))
        return [count for count in joined if count > 0]

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """No rounds in which nothing can join any more."""
        if any(s.options != strata[0].options for s in strata):
            return strata
        method = cls(**strata[0].options)
        totals = [sum(i * o for i, o in method.shapes(facts, s)) for s in strata]
        rounds = max(len(method.steps(total)) for total in totals)
        return [clipped(cls, s, "rounds", rounds) for s in strata]

    def chosen(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """min(80 %, 1 - (1 - grow)^rounds) of the weights."""
        return sum(self.steps(sum(inputs * outputs for inputs, outputs in shapes)))

    def places(
        self,
        scoring: Scoring,
        strata: Sequence[Stratum],
        readout: Readout,
        paths: Sequence[str],
        count: int,
    ) -> list[Tensor]:
        """The mask after the last round."""
        from autopeft.methods.scores import grown

        facts = scoring.network.facts
        steps = [self.steps(sum(i * o for i, o in self.shapes(facts, s))) for s in strata]
        rounds = max(map(len, steps))
        counts = [sum(s[i] for s in steps if i < len(s)) for i in range(rounds)]
        return grown(scoring, self.recipe(), self.name, strata, readout, counts)


def _l1(values: Sequence[Tensor], weight: float) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        total: Tensor = sum(value.abs().sum() for value in values)  # type: ignore[assignment]
        return total * weight

    return loss
