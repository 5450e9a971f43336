"""As accurate as needed with as few trained numbers as possible.

AUROC is maximized and the number of trainable parameters, head included, is minimized, under the
floor AUROC >= max(linear probe, LoRA r=8) - margin. The search picks the knee of the front: with
both terms stretched to 0 (worst on the front) .. 1 (best), parameters by their logarithm,

    maximize n_AUROC + n_parameters

which is the candidate farthest beyond the straight line between the most accurate and the
smallest one: from there on, more parameters buy little. Where the front has one candidate, it is
picked. Both terms are known of a half-trained model and promote it.

Trainable parameters are what has to be stored and sent for each task; they say little about the
time of a training step, which depends on how deep in the network the lowest of them lies.

Papers: Das, On characterizing the knee of the Pareto curve based on Normal-Boundary Intersection.
Structural Optimization 18 (1999). Houlsby et al., Parameter-Efficient Transfer Learning for NLP.
ICML 2019.
"""

from autopeft.objective import AtLeast, Objective, Term, knee

OBJECTIVE = Objective(
    terms=(Term("auroc", "maximize"), Term("trainable_params", "minimize")),
    constraints=(AtLeast("auroc", "reference - margin"),),
    rung="auroc",
    choose=knee("auroc", "trainable_params"),
    primary="auroc",
    shown=("adapter_bytes", "train_seconds"),
)
