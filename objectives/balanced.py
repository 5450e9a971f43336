"""A bit of everything: accuracy, the worst-off group, memorization and size at once.

Four terms make one front: AUROC and worst-group AUROC are maximized, memorization (attack minus
null, see `memorization`) and trainable parameters are minimized, under the floor
AUROC >= max(linear probe, LoRA r=8) - margin. The search picks what lies nearest to the ideal
point. With each term stretched to n = 0 (worst on the front) .. 1 (best on the front), parameters
by their logarithm:

    minimize sqrt( sum over terms of (1 - n)^2 )

No weights are chosen by hand, but the front's extremes set the scale: a term that hardly varies
among the candidates counts as much as one that varies a lot. With four terms most candidates are
on the front, so give it trials (100 and more), or take one of the objectives with two terms.
Trials are promoted by the two AUROCs and the size, never by memorization.

Papers: Marler & Arora, Survey of multi-objective optimization methods for engineering (global
criterion). Structural and Multidisciplinary Optimization 26 (2004). Zong, Yang & Hospedales,
MEDFAIR: Benchmarking Fairness for Medical Imaging (distance to optimum as a selection rule).
ICLR 2023.
"""

from autopeft.objective import AtLeast, Objective, Term, dto

OBJECTIVE = Objective(
    terms=(
        Term("auroc", "maximize"),
        Term("worst_group_auroc", "maximize"),
        Term("memorization", "minimize"),
        Term("trainable_params", "minimize"),
    ),
    constraints=(AtLeast("auroc", "reference - margin"),),
    rung="auroc",
    choose=dto("auroc", "worst_group_auroc", "memorization", "trainable_params"),
    primary="worst_group_auroc",
    needs=("groups", "memorization"),
    shown=("auroc_gap", "generalization_gap"),
)
