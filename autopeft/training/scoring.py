"""What methods that look first may see in a worker: plain views of the training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from autopeft.candidate import Train
from autopeft.training.fast import Casts, move, speed_up
from autopeft.training.loop import NotFiniteError, Plan, Source, pixels, train_epochs
from autopeft.training.losses import loss_terms
from autopeft.training.sampling import label_weights

if TYPE_CHECKING:
    from autopeft.backbones.network import Network
    from autopeft.methods.adapted import Adapted
    from autopeft.training.images import ImageStore

MADE = 6  # results of looking that a worker keeps; one may be as large as the backbone


@dataclass
class TrainScoring:
    """Implements ``autopeft.methods.method.Scoring`` for one candidate of one worker.

    Attributes:
        network: the resident backbone.
        seed: of the candidate and the repeat.
        plan: how the candidate trains; ``fine_tune`` trains so too, but for length and rate.
        store: the images.
        casts: of the resident backbone.
        source: where an adapter's input comes from.
        solved: solves the linear probe: weight [C, d] and bias [C].
        made: what was found before, by key; shared by all candidates of the worker.
        shared: what the looking depends on besides its own key.
    """

    network: Network
    seed: int
    plan: Plan
    store: ImageStore
    casts: Casts
    source: Callable[[Adapted], Source]
    solved: Callable[[], tuple[Tensor, Tensor]]
    made: MutableMapping[str, Any]
    shared: str

    def head(self) -> tuple[Tensor, Tensor]:
        """The fitted probe's."""
        found: tuple[Tensor, Tensor] = self.cached("head", self.solved)
        return found

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Plain views in the order of the rows; see ``Scoring``."""
        rows = self.plan.rows
        assert rows.label is not None
        count = len(rows) if limit is None else min(limit, len(rows))
        places = np.arange(count) * len(rows) // max(count, 1)
        for start in range(0, count, size):
            part = places[start : start + size]
            plain = np.zeros(len(part), np.int64)
            # The network that methods look at lies in this machine's memory, as it was loaded.
            x = pixels(self.store, self.network.facts, rows.index[part], plain)
            yield x, torch.from_numpy(rows.label[part])

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The candidate's own loss, mean over the entries that have a label; 0 without any.

        Raises:
            NotFiniteError: it is NaN or infinite.
        """
        plan = self.plan
        assert plan.rows.label is not None
        weight = torch.from_numpy(label_weights(plan.rows.label))
        train = plan.train
        total, count = loss_terms(
            logits.float(), label, plan.kind, train.loss, train.label_smoothing, weight
        )
        mean = total / max(1, int(count))
        if not torch.isfinite(mean):
            raise NotFiniteError(f"loss is {float(mean)} while weights are scored")
        return mean

    def fine_tune(self, adapted: Adapted, epochs: int, lr: float) -> None:
        """A whole schedule of so many epochs, in the search's precision and augmentation.

        The optimizer is AdamW at its usual settings; loss and sampling are the candidate's.
        """
        speed_up(adapted, self.plan.precision, self.casts)
        own = self.plan.train
        train = Train(
            lr=lr, loss=own.loss, sampling=own.sampling, label_smoothing=own.label_smoothing
        )
        plan = replace(self.plan, source=self.source(adapted), train=train, epochs=epochs)
        train_epochs(adapted, plan, 0, epochs)
        if plan.device != "cpu":  # what looks at it is on the CPU
            model, saved = adapted.network.model, adapted.trainable | adapted.fixed
            move([*model.parameters(), *model.buffers(), *saved.values()], "cpu")

    def cached(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gave for this key; the oldest go when there are too many."""
        full = f"{self.shared} {key}"
        if full not in self.made:
            found = make()
            while len(self.made) >= MADE:
                del self.made[next(iter(self.made))]
            self.made[full] = found
        return self.made[full]
