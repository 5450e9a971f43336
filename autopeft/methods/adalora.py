"""AdaLoRA: a rank budget that moves to the layers that need it while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.methods.method import Injection, Rate, integer, number
from autopeft.methods.tuner import ADAPTER, Peft, Tuner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum

BUDGETS = 100  # how often the budget may move in the whole schedule


@dataclass(frozen=True)
class AdaLora(Tuner):
    """Adaptive LoRA: y = W x + s B diag(E) A x, s = lora_alpha / ranks, with E masked by a budget.

    E starts at zero. After each step the importance of each triplet (a row of A, its entry of E,
    a column of B) is updated; between the shares ``tinit`` and 1 - ``tfinal`` of the schedule the
    number of triplets over all layers falls from ``init_r`` to ``target_r`` a layer (cubic). The
    entries of E that lost keep their place and are zero. ``extra_loss`` keeps the rows of A and
    columns of B orthonormal; peft adds it only to outputs that have a loss, so it is added here.

    Differs from the paper: the warm-up and the last phase are shares of the schedule, and the
    budget moves at most 100 times. Importance is not saved: it trains in one stretch.
    """

    name: ClassVar[str] = "adalora"
    family: ClassVar[str] = "low_rank"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.10512"
    summary: ClassVar[str] = "LoRA whose ranks move to the layers that need them while training."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": Rate(5e-3, 2e-4, 2e-2)}
    pausable: ClassVar[bool] = False
    shared: ClassVar[tuple[str, ...]] = (
        "init_r",
        "target_r",
        "lora_alpha",
        "tinit",
        "tfinal",
        "orth_reg_weight",
    )
    # peft wants the number of steps when it builds; the real one comes with the first step.
    peft: ClassVar[Peft] = Peft("AdaLoraConfig", values={"total_step": 1_000_000}, convs="all")

    init_r: int = integer(12, 2, 64)
    target_r: int = integer(8, 1, 63)
    lora_alpha: float = number(32.0, 0.001, 4096.0)
    tinit: float = number(0.1, 0.0, 0.4)
    tfinal: float = number(0.3, 0.0, 0.5)
    orth_reg_weight: float = number(0.5, 0.0, 10.0)

    def numbers(self, inputs: int, outputs: int, kernel: int) -> int:
        """init_r (in + out + 1)."""
        return self.init_r * (inputs + outputs + 1)

    def wrong(self) -> str | None:
        """The budget must have something to take away."""
        if self.target_r >= self.init_r:
            return f"target_r = {self.target_r} must be less than init_r = {self.init_r}"
        return None

    @classmethod
    def config_values(cls, network: Network, strata: Sequence[Stratum]) -> dict[str, Any]:
        """Shares of the schedule are no fields of the config."""
        values = super().config_values(network, strata)
        return {k: v for k, v in values.items() if k not in ("tinit", "tfinal")}

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Wraps the target modules; adds the penalty and the budget."""
        before = list(network.model.parameters())
        tuner = cls.wrap(network, strata, readout)
        injection = cls.collect(network, before)
        options = cls(**strata[0].options)
        matrices = [
            parameter if ".lora_A" in name else parameter.T
            for name, parameter in injection.trainable.items()
            if ".lora_E" not in name
        ]
        return Injection(
            injection.trainable,
            extra_loss=_penalty(matrices, options.orth_reg_weight),
            after_step=_budget(tuner.rankallocator, injection.trainable, options),
        )


def _penalty(matrices: Sequence[Tensor], weight: float) -> Callable[[], Tensor] | None:
    """weight * mean over the matrices M [r, n] of ||M M^T - I|| (Frobenius)."""
    import torch

    if not weight:
        return None

    def loss() -> Tensor:
        terms = []
        for matrix in matrices:
            gram = matrix @ matrix.T
            eye = torch.eye(len(gram), device=gram.device)
            terms.append(torch.linalg.matrix_norm(gram - eye))
        return weight * torch.stack(terms).mean()

    return loss


class _Own:
    """What peft's allocator sees of a model: AdaLoRA's parameters, not those of a LoRA beside."""

    def __init__(self, trainable: Mapping[str, nn.Parameter]) -> None:
        self._trainable = [(f"{name}.{ADAPTER}", p) for name, p in trainable.items()]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """As a module has it."""
        return self._trainable


def _budget(
    theirs: Any, trainable: Mapping[str, nn.Parameter], options: AdaLora
) -> Callable[[int, int], None]:
    """Moves the budget after each step; the schedule's length is known with the first one."""
    model, config = _Own(trainable), theirs.peft_config
    allocator = type(theirs)(model, config, ADAPTER)
    kept: dict[str, Any] = {}

    def after_step(step: int, total: int) -> None:
        if total < 2:
            return
        if config.total_step != total:
            config.total_step = total
            config.tfinal = min(max(1, round(options.tfinal * total)), total - 1)
            config.tinit = min(round(options.tinit * total), total - config.tfinal - 1)
            config.deltaT = max(1, total // BUDGETS)
        last = total - config.tfinal
        if step > last:
            allocator.mask_using_rank_pattern(model, kept)
            return
        _, found = allocator.update_and_allocate(model, step, force_mask=step == last)
        kept.update(found or {})

    return after_step
