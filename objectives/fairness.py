"""Serve the worst-off group of patients best, without giving up accuracy for everybody.

Two things are maximized together, so the search returns a front of compromises:

    AUROC            over all patients
    worst group      min over attributes a, groups g of AUROC(patients in g)

under a floor that is measured before the first trial:

    AUROC >= max(linear probe, LoRA r=8) - margin          (margin .01 by default)

The search picks the candidate of the front with the highest worst-group AUROC; ties go to the
higher AUROC, then to fewer trainable parameters. Groups count from 50 positive and 50 negative
patients on (`--min-group`), and within an attribute only labels that all its groups can score are
used.

The gap between the best and the worst group is shown but not optimized: a constant score has no
gap, and neither has a model that was made worse for the group it served better. Maximizing the
minimum cannot be gained by such levelling down.

Papers: Zietlow et al., Leveling Down in Computer Vision. CVPR 2022. Sagawa et al.,
Distributionally Robust Neural Networks for Group Shifts (worst-group objective). ICLR 2020.
"""

from autopeft.objective import AtLeast, Objective, Term, worst_group

OBJECTIVE = Objective(
    terms=(Term("auroc", "maximize"), Term("worst_group_auroc", "maximize")),
    constraints=(AtLeast("auroc", "reference - margin"),),
    rung="auroc",
    choose=worst_group,
    primary="worst_group_auroc",
    needs=("groups",),
    shown=("auroc_gap",),
)
