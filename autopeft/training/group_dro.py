"""Group DRO: cells of patients weigh more the worse they are served while training goes on.

Sagawa et al., Distributionally Robust Neural Networks for Group Shifts (ICLR 2020,
arXiv:1911.08731), algorithm 1: minimize the largest mean loss over cells g. With weights q on the
simplex, the network descends on sum_g q_g L_g while q ascends on it, q_g <- q_g exp(eta L_g) / Z.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autopeft.errors import UserError
from autopeft.evaluation import Kind
from autopeft.job import Rows
from autopeft.training.sampling import cells

STEP = 0.01  # eta, the default of the paper's code; its trainings took 10,000 steps and more
REACH = 10.0  # eta times all steps is at least this: a short training must get somewhere too
NAME = "group dro|log_q"  # in the saved state; no parameter has a space in its name


def dro_cells(rows: Rows, kind: Kind, sampling: str) -> npt.NDArray[np.int64]:
    """The cell of each training row, [N], numbered from 0.

    A cell is a combination of all declared attributes; with ``label_x_group`` sampling of a
    binary or multiclass task also of the label, as in the paper. With several labels it is the
    groups alone: their combinations would leave a handful of patients each. Rows of unknown group
    are cells of their own, as in sampling.

    Raises:
        UserError: the rows have no groups.
    """
    if not rows.groups:
        fix = "Give --group, or leave group_dro out."
        raise UserError("group DRO needs groups, the task has none", "train.group_dro", fix)
    by_label = sampling == "label_x_group" and kind != "multilabel"
    return cells(rows, "label_x_group" if by_label else "group")


class GroupWeights:
    """The weights q of the cells: what a training keeps besides weights and optimizer.

    The network's step uses the q of the steps before, then q is updated once with the losses of
    the whole batch, in however many pieces it went through the network: with the paper's order
    (q first) the first piece would have to wait for the last one's loss.

    Args:
        cell: of each training row, [N].
        steps: of the whole schedule.
    """

    def __init__(self, cell: npt.NDArray[np.int64], steps: int) -> None:
        self.cell = torch.from_numpy(cell)
        self.count = int(cell.max()) + 1
        self.eta = max(STEP, REACH / max(1, steps))
        self.log_q = torch.zeros(self.count, dtype=torch.float64)

    @property
    def q(self) -> Tensor:
        """Weights of the cells [G], sum 1, float64 on the CPU."""
        return self.log_q.softmax(0)

    def row_weights(self, cell: Tensor, labelled: Tensor) -> Tensor:
        """What each row's sum of losses counts: q of its cell / labelled entries of the cell.

        Args:
            cell: of the batch's rows [B].
            labelled: labelled entries of each row [B].

        Returns:
            [B]; the weighted sum over the batch is sum_g q_g (mean loss of g in the batch).
        """
        zero = torch.zeros(self.count, dtype=torch.float64)
        entries = zero.index_add(0, cell, labelled.double())
        return (self.q / entries.clamp(min=1))[cell].float()

    def update(self, cell: Tensor, losses: Tensor, labelled: Tensor) -> None:
        """One step of q: cells with a higher mean loss gain.

        A cell without a labelled row in the batch is taken to be as badly served as the batch is
        on average (weighted by q). Counting its absence as no loss at all would starve rare
        cells; where all cells are there, it changes nothing, for q is normalized.

        Args:
            cell: of the batch's rows [B].
            losses: each row's sum of losses [B].
            labelled: labelled entries of each row [B].
        """
        zero = torch.zeros(self.count, dtype=torch.float64)
        entries = zero.index_add(0, cell, labelled.double())
        mean = zero.index_add(0, cell, losses.double()) / entries.clamp(min=1)
        there = entries > 0
        if not there.any():
            return
        average = (self.log_q[there].softmax(0) * mean[there]).sum()
        log_q = self.log_q + self.eta * torch.where(there, mean - average, zero)
        self.log_q = log_q - log_q.logsumexp(0)

    def state(self) -> dict[str, Tensor]:
        """What has to be saved."""
        return {NAME: self.log_q.clone()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Goes on from ``state``."""
        if NAME in saved:
            self.log_q = saved[NAME].clone()
