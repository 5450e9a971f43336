"""Probabilities that mean what they say, without giving up ranking.

Of the patients told 30 %, 30 % should have the finding. With the patients of one label in ten bins
b of equal size, n_b of n rows in each, y_b the share of positives and p_b the mean probability,

    ECE = sqrt( max(0, sum over bins of (n_b / n) ((y_b - p_b)^2 - noise_b)) )

where noise_b is the variance of y_b - p_b over patients: what chance alone adds to the square.
AUROC is maximized and the ECE, mean over labels, minimized under the floor
AUROC >= max(linear probe, LoRA r=8) - margin. Below 200 search patients it is undefined. The
search picks, among candidates within the margin of the best AUROC, the smallest error.

A model that gives everybody the prevalence is calibrated and useless: hence the floor, and
calibration never promotes a half-trained trial. Weighted losses and balanced sampling move
probabilities away from the prevalence on purpose, and this objective will see that; a temperature
would not mend it, since it keeps the side of one half on which a probability lies.

Papers: Guo et al., On Calibration of Modern Neural Networks. ICML 2017. Kumar, Liang & Ma,
Verified Uncertainty Calibration (the debiased estimate). NeurIPS 2019.
"""

from autopeft.objective import AtLeast, Objective, Term, lexicographic

OBJECTIVE = Objective(
    terms=(Term("auroc", "maximize"), Term("ece", "minimize")),
    constraints=(AtLeast("auroc", "reference - margin"),),
    rung="auroc",
    choose=lexicographic(("auroc", "margin"), "ece", "trainable_params"),
    primary="auroc",
    shown=("brier", "calibration_slope_error"),
)
