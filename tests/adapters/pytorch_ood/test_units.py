"""A score does not depend on the unit of the features: nothing added to them is absolute."""

import pytest
import torch
from pytorch_ood.api import FeaturesDetector
from sklearn.metrics import roc_auc_score
from torch import nn

from isomax_adapters.pytorch_ood import Parts, detectors_for, why_not

WIDTH, CLASSES = 24, 4
# what the paper's formula has in units: classifying normalised features, a softmax of distances
OF_UNITS = {"PNML", "PostHocIsoMax"}


class Network(nn.Module):
    """A classifier of features that are given in another unit."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            self.fc.weight.copy_(means() / scale)
            self.fc.bias.copy_(torch.linspace(-1, 1, CLASSES))

    def forward(self, x):
        return self.fc(x)


def means():
    return torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))


def draw(seed, count, nearness=1.0):
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return (nearness * means()[labels] + 0.7 * noise).relu(), labels


def detectors(scale):
    parts = Parts(Network(scale).eval(), classifier="fc")
    names = set(detectors_for(parts)) - OF_UNITS - set(why_not(parts))
    made = detectors_for(parts, sorted(names))
    return {name: one for name, one in made.items() if isinstance(one, FeaturesDetector)}


@pytest.mark.parametrize("name", sorted(detectors(1.0)))
@torch.no_grad()
def test_features_in_another_unit_have_the_same_auroc(name):
    train, labels = draw(1, 400)
    known, unknown = draw(2, 300)[0], draw(3, 300, nearness=0.3)[0]
    found = []
    for scale in (1e-3, 1.0, 1e3):
        detector = detectors(scale)[name]
        if detector.requires_fit:
            detector.fit_features(scale * train, labels)
        scores = detector.predict_features(scale * torch.cat([known, unknown]))
        found.append(roc_auc_score(torch.arange(600) >= 300, scores.double()))
    assert found == pytest.approx([found[1]] * 3, abs=1e-3)
    assert found[1] > 0.6
