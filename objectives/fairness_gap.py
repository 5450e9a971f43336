"""Close the gap between groups of patients, without anybody paying for it.

Accuracy for all is maximized and the gap is minimized, largest over the attributes a:

    gap = max over a of (max over groups g of AUROC(g) - min over groups g of AUROC(g))

A gap alone is won by a model that tells nobody apart, or by one that was made worse for the
group it served better. Two floors, measured before the first trial, keep both out:

    AUROC             >= max(linear probe, LoRA r=8) - margin
    worst group AUROC >= max(linear probe, LoRA r=8) - margin

The search picks, among candidates whose worst group is within the margin of the best one's, the
one with the smallest gap. A gap is never a reason to promote a half-trained trial: an untrained
model has none. Measured gaps are biased upwards (with no bias at all, four groups of 50 + 150
patients show about .06), so prefer `fairness` where groups are small; the report tests whether
there is a gap at all.

Papers: Zietlow et al., Leveling Down in Computer Vision. CVPR 2022. Dutt et al., FairTune:
Optimizing Parameter Efficient Fine Tuning for Fairness in Medical Image Analysis. ICLR 2024 (the
gap as the outer objective, there without a floor).
"""

from autopeft.objective import AtLeast, Objective, Term, lexicographic

OBJECTIVE = Objective(
    terms=(Term("auroc", "maximize"), Term("auroc_gap", "minimize")),
    constraints=(
        AtLeast("auroc", "reference - margin"),
        AtLeast("worst_group_auroc", "reference - margin"),
    ),
    rung="auroc",
    choose=lexicographic(("worst_group_auroc", "margin"), "auroc_gap", "auroc"),
    primary="worst_group_auroc",
    needs=("groups",),
    shown=("worst_group_auroc",),
)
