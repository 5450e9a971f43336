"""Rank patients as well as possible.

AUROC is the probability that a randomly drawn positive scores above a randomly drawn negative,
ties counting half:

    AUROC = P(s+ > s-) + P(s+ = s-) / 2

With several classes it is the mean over the classes that have both labels. It does not depend on
a threshold and not on how common the finding is; it says nothing about calibration and nothing
about any single group of patients (for that: `fairness`).

Among equal AUROCs the candidate with the fewest trainable parameters is picked.

Paper: Hanley & McNeil, The meaning and use of the area under a receiver operating characteristic
(ROC) curve. Radiology 143 (1982).
"""

from autopeft.objective import Objective, Term, overall

OBJECTIVE = Objective(
    terms=(Term("auroc", "maximize"),),
    rung="auroc",
    choose=overall,
    primary="auroc",
)
