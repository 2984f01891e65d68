"""Every detector once more, from its paper's formula, in float64 and without pytorch-ood.

``REFERENCES[name](case)`` gives the scores of the test images, larger for outliers. Scale and
offset are the paper's; :func:`difference` compares up to these, since they change no ranking.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import softmax

from . import references_on_layers as layers
from . import references_on_outputs as outputs
from .case import Array, Case


def difference(scores: Array, reference: Array) -> float:
    """The largest difference after the best positive scale and offset, in standard deviations.

    Infinite where one of them does not tell the images apart, or they are opposed.
    """
    spread, slope = scores.std(), np.polyfit(reference, scores, 1) if reference.std() else [0, 0]
    if not spread > 0 or not slope[0] > 0:
        return np.inf
    return float(np.abs(np.polyval(slope, reference) - scores).max() / spread)


REFERENCES: dict[str, Callable[[Case], Array]] = {
    "ASH": lambda case: outputs.ash(case, True, 0.9),
    "ASH-maps": lambda case: outputs.ash(case, False, 0.65),
    "DICE": outputs.dice,
    "EnergyBased": lambda case: outputs.energy(case.logits[1]),
    "Entropy": lambda case: outputs.entropy(case.logits[1]),
    "fDBD": outputs.fdbd,
    "GEN": outputs.gen,
    "GMM": outputs.gmm,
    "GradNorm": layers.grad_norm,
    "GradNorm-all": layers.grad_norm_all,
    "GradUncertainty": layers.grad_uncertainty,
    "Gram": layers.gram,
    "KLMatching": outputs.kl_matching,
    "KNN": outputs.knn,
    "LTS": outputs.lts,
    "Mahalanobis": outputs.mahalanobis,
    "MahalanobisODIN": layers.mahalanobis_odin,
    "MahalanobisPP": outputs.mahalanobis_pp,
    "MaxLogit": lambda case: -case.logits[1].max(axis=1),
    "MaxSoftmax": lambda case: -softmax(case.logits[1], axis=1).max(axis=1),
    "MCD": layers.mcd,
    "MultiMahalanobis": layers.multi_mahalanobis,
    "NACUE": layers.nac,
    "NCI": outputs.nci,
    "NNGuide": outputs.nnguide,
    "ODIN": layers.odin,
    "OpenMax": outputs.openmax,
    "PNML": outputs.pnml,
    "PostHocDisMax": outputs.post_hoc_dismax,
    "PostHocIsoMax": outputs.post_hoc_isomax,
    "PostHocIsoMaxPlus": outputs.post_hoc_isomax_plus,
    "RankFeat": outputs.rank_feat,
    "ReAct": lambda case: outputs.react(case, True),
    "ReAct-maps": lambda case: outputs.react(case, False),
    "RMD": outputs.rmd,
    "RMDPP": outputs.rmd_pp,
    "SCALE": lambda case: outputs.scale(case, True, 0.85),
    "SCALE-maps": lambda case: outputs.scale(case, False, 0.65),
    "SHE": outputs.she,
    "TemperatureScaling": outputs.temperature_scaling,
    "ViM": outputs.vim,
    "VRA": outputs.vra,
    "VRA-maps": outputs.vra_maps,
    "EntropicScore": lambda case: outputs.entropy(case.logits[1]),
    "MinimumDistanceScore": lambda case: -case.logits[1].max(axis=1),
    "MaxMeanLogitEntropyScore": lambda case: (
        outputs.entropy(case.logits[1]) - case.logits[1].max(axis=1) - case.logits[1].mean(axis=1)
    ),
}
