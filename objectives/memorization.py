"""Learn the finding, not the patients: accuracy kept, least told about who was in the training.

An attacker sees a patient's scores and guesses whether the patient was trained on. Members are
training patients, non-members probe patients of the same random split, matched on label, view and
number of images. What is minimized is how much better than chance the best attack does, minus the
same attack on a model that was not trained (kNN on the frozen backbone):

    memorization = AUROC(attack on the candidate) - AUROC(attack on the frozen backbone)

under the floor AUROC >= max(linear probe, LoRA r=8) - margin. The search picks, among candidates
within the margin of the best AUROC, the one that memorizes least; ties go to fewer trainable
parameters. An untrained model memorizes nothing, so memorization never promotes a trial.

A small number says that no attack that was run succeeded, and is no guarantee: that needs training
with differential privacy.

Papers: Yeom et al., Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting
(loss attack). CSF 2018. Dutt et al., MemControl: Mitigating Memorization in Diffusion Models via
Automated Parameter Selection (capacity as the outer variable). WACV 2025.
"""

from autopeft.objective import AtLeast, Objective, Term, lexicographic

OBJECTIVE = Objective(
    terms=(Term("auroc", "maximize"), Term("memorization", "minimize")),
    constraints=(AtLeast("auroc", "reference - margin"),),
    rung="auroc",
    choose=lexicographic(("auroc", "margin"), "memorization", "trainable_params"),
    primary="auroc",
    needs=("memorization",),
    shown=("generalization_gap",),
)
