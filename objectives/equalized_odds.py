"""Equal error rates for all groups of patients at the operating point.

At one threshold per label, fitted on search patients for a sensitivity of .90 and then frozen, the
same share of the sick should be found, and of the healthy be alarmed, in every group:

    EOD = max( max over g, h |TPR(g) - TPR(h)|,  max over g, h |FPR(g) - FPR(h)| )

AUROC is maximized and EOD minimized under the floors of `fairness_gap`: AUROC and the worst
group's AUROC at least the baselines' minus the margin. The search picks, among candidates within
the margin of the best AUROC, the one with the smallest EOD.

Where the prevalence differs between groups, equal error rates and equal calibration cannot both
hold (Kleinberg et al. 2017): look at calibration by group in the report before calling either
wrong. Where a rate has an empty denominator in some group, EOD is undefined, never 0. EOD never
promotes a half-trained trial.

Papers: Hardt, Price & Srebro, Equality of Opportunity in Supervised Learning. NeurIPS 2016.
Kleinberg, Mullainathan & Raghavan, Inherent Trade-Offs in the Fair Determination of Risk Scores.
ITCS 2017.
"""

from autopeft.objective import AtLeast, Objective, Term, lexicographic

OBJECTIVE = Objective(
    terms=(Term("auroc", "maximize"), Term("equalized_odds_difference", "minimize")),
    constraints=(
        AtLeast("auroc", "reference - margin"),
        AtLeast("worst_group_auroc", "reference - margin"),
    ),
    rung="auroc",
    choose=lexicographic(("auroc", "margin"), "equalized_odds_difference", "trainable_params"),
    primary="auroc",
    needs=("groups", "thresholds"),
    shown=("worst_group_auroc", "auroc_gap"),
)
