"""An objective of your own: AUROC with few parameters, in one file.

autopeft search --objective examples/own_objective.py
"""

from autopeft.objective import AtLeast, Objective, Term

OBJECTIVE = Objective(
    terms=(Term("auroc"), Term("trainable_params")),
    constraints=(AtLeast("auroc", "reference - 0.02"),),
    primary="auroc",
)
