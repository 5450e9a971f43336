"""Raise the AUROC of the worst-off group of patients: one number, no front of compromises.

    worst group = min over attributes a, groups g of AUROC(patients in g)

is maximized under a floor that is measured before the first trial:

    AUROC >= max(linear probe, LoRA r=8) - margin          (margin .01 by default)

Half-trained trials are promoted by the same number, so the budget goes where the worst-off group
gains. It is noisier than the AUROC of all patients, for fewer of them carry it: with groups that
barely count (50 + 50 patients) its standard error is about .04, and `fairness`, which promotes by
both, wastes less. Ties go to the higher AUROC, then to fewer trainable parameters.

Paper: Sagawa et al., Distributionally Robust Neural Networks for Group Shifts (the worst-group
objective). ICLR 2020.
"""

from autopeft.objective import AtLeast, Objective, Term, worst_group

OBJECTIVE = Objective(
    terms=(Term("worst_group_auroc", "maximize"),),
    constraints=(AtLeast("auroc", "reference - margin"),),
    rung="worst_group_auroc",
    choose=worst_group,
    primary="worst_group_auroc",
    needs=("groups",),
    shown=("auroc", "auroc_gap"),
)
