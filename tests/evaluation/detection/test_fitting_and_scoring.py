"""One pass gives the numbers that pytorch-ood gives with a pass per detector."""

import copy
import gc

import numpy as np
import pytest
import pytorch_ood.detector as ood
import timm
import torch
from pytorch_ood.api import Detector, LogitsDetector
from pytorch_ood.benchmark import Benchmark
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

import isomax_adapters.timm  # noqa: F401
from isomax_adapters.pytorch_ood import Parts, detectors_for
from isomax_adapters.pytorch_ood.entries import maps
from isomax_evaluation.detection.fitting import fit
from isomax_evaluation.detection.scoring import score
from isomax_evaluation.detection.testing.metrics import METRICS, one_score, ood_metrics


def coloured(count, classes, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randn(count, 3, 48, 48, generator=generator)
    return images + shift + labels[:, None, None, None], labels


TRAIN = coloured(80, 4, 0.0, 0)
ID_TEST = coloured(30, 4, 0.0, 1)
OOD = {"near": coloured(20, 4, 0.5, 2), "far": coloured(1, 1, 5.0, 3)}  # an OOD set of one image


def loader(images, labels):
    return DataLoader(TensorDataset(images, labels), batch_size=32)


class Made(Benchmark):
    ood_names = list(OOD)  # noqa: RUF012

    def train_set(self):
        return TensorDataset(*TRAIN)

    def test_sets(self, known=True, unknown=True):
        unknowns = [TensorDataset(x, torch.full_like(y, -1)) for x, y in OOD.values()]
        return [ConcatDataset([TensorDataset(*ID_TEST), other]) for other in unknowns]


@pytest.fixture(scope="module", params=["softmax_test_resnet", "isomax_test_resnet"])
def model(request):
    return trained(request.param)


def trained(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    for _ in range(8):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(TRAIN[0]), TRAIN[1]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.filterwarnings("ignore")
def test_metrics_are_those_of_pytorch_oods_own_way(model):
    theirs = {n: d for n, d in detectors_for(model).items() if n not in ("OpenMax", "SHE")}
    assert len(theirs) >= 27
    for detector in theirs.values():
        torch.manual_seed(7)  # Gram draws which images it holds out
        detector.fit(loader(*TRAIN))
    expected = Made().evaluate(list(theirs.values()), {"batch_size": 32}, cache=True)

    parts = Parts(model)
    ours = detectors_for(parts, theirs)
    torch.manual_seed(7)
    assert not fit(parts, ours, loader(*TRAIN))
    known = score(parts, ours, loader(*ID_TEST))[1]
    unknown = {name: score(parts, ours, loader(*images))[1] for name, images in OOD.items()}
    for number, row in enumerate(expected):
        name = list(theirs)[number % len(theirs)]
        found = ood_metrics(known[name], unknown[row["Dataset"]][name])
        # NACUE counts gradients in bins: the last bit of one, which the place of a tensor in memory
        # decides, can move an image to another bin
        tolerance = 0.02 if name == "NACUE" else 1e-6
        for metric in METRICS:
            expected_value = pytest.approx(row[metric], abs=tolerance)
            assert found[metric] == expected_value, (name, row["Dataset"])


def test_each_image_is_decoded_once_and_classified_once(model):
    class Counting(TensorDataset):
        decoded = 0

        def __getitem__(self, index):
            Counting.decoded += 1
            return super().__getitem__(index)

    names = ["MaxSoftmax", "KNN", "KLMatching", "ReAct", "ReAct-maps", "ASH-maps", "VRA-maps"]
    parts = Parts(model)
    detectors = detectors_for(parts, names)
    first = next(m for m in model.modules() if list(m.parameters(recurse=False)))
    passes = []
    hook = first.register_forward_hook(lambda *args: passes.append(len(args[1][0])))
    assert not fit(parts, detectors, DataLoader(Counting(*TRAIN), batch_size=32))
    _, scores, failed = score(parts, detectors, DataLoader(Counting(*ID_TEST), batch_size=32))
    hook.remove()
    assert not failed
    assert set(scores) == set(names)
    assert Counting.decoded == len(TRAIN[0]) + len(ID_TEST[0]) == sum(passes)


@pytest.mark.parametrize("name", ["softmax_test_resnet", "isomaxplus_test_resnet"])
def test_a_score_does_not_depend_on_what_else_is_in_the_batch(name):
    parts = Parts(trained(name))
    detectors = detectors_for(parts)
    failed = fit(parts, detectors, loader(*TRAIN))
    detectors = {n: d for n, d in detectors.items() if n not in failed}
    assert len(detectors) > 24
    images, labels = ID_TEST
    _, whole, _ = score(parts, detectors, [(images, labels)])
    _, split, _ = score(
        parts, detectors, [(images[i : i + 7], labels[i : i + 7]) for i in range(0, 30, 7)]
    )
    apart = {
        detector: float((split[detector] - values).abs().max() / values.std())
        for detector, values in whole.items()
    }
    # NACUE bins gradients, and their last bit is another in another batch
    assert apart.pop("NACUE") < 0.5
    assert max(apart.values()) < 0.01, apart


def test_labels_below_zero_are_not_fitted_on(model):
    parts = Parts(model)
    mixed = torch.cat([TRAIN[0], OOD["far"][0]]), torch.cat([TRAIN[1], torch.tensor([-1])])
    names = ["ReAct", "ReAct-maps", "VRA-maps", "Mahalanobis", "KNN"]
    clean, dirty = detectors_for(parts, names), detectors_for(parts, names)
    assert not fit(parts, clean, loader(*TRAIN))
    assert not fit(parts, dirty, loader(*mixed))
    expected, found = (score(parts, d, loader(*ID_TEST))[1] for d in (clean, dirty))
    for name in names:
        torch.testing.assert_close(found[name], expected[name])


class _Raises(LogitsDetector):
    def __init__(self, model):
        self.model = model

    def predict_logits(self, logits):
        raise KeyError("weights")


class _Undefined(LogitsDetector):
    def __init__(self, model):
        self.model = model

    def predict_logits(self, logits):
        scores = logits[:, 0].clone()
        scores[3] = torch.nan
        return scores


class _ReadsTwice(Detector):
    requires_fit = True

    def fit(self, data_loader):
        self.seen = [int((labels >= 0).sum()) for _ in range(2) for _, labels in data_loader]
        if len(self.seen) > 6:
            raise KeyError("batches")

    def predict(self, x):
        return x.mean(dim=(1, 2, 3))


class Batches:
    """A loader that does not know its length."""

    def __iter__(self):
        return iter(loader(*TRAIN))


def test_a_fit_may_read_the_images_as_often_as_it_likes(model):
    """And gets those of known classes, whatever is known of how many there are."""
    mixed = torch.cat([TRAIN[0][:70], OOD["near"][0]]), torch.cat([TRAIN[1][:70], -torch.ones(20)])
    twice = _ReadsTwice()
    done = []
    assert not fit(Parts(model), {"twice": twice}, loader(*mixed), advance=done.append)
    assert twice.seen == [32, 32, 6] * 2
    assert sum(done) == 90
    gram = detectors_for(Parts(model), ["Gram"])  # which looks at the length
    assert not fit(Parts(model), gram, Batches())


def test_what_fails_is_named_and_the_rest_stands(model):
    parts = Parts(model)
    detectors = {
        "raises": _Raises(model),
        "undefined": _Undefined(model),
        "fails": _ReadsTwice(),
        **detectors_for(parts, ["MaxLogit", "Gram"]),
    }
    failed = fit(parts, detectors, DataLoader(TensorDataset(*TRAIN), batch_size=8))
    assert failed == {"fails": "KeyError: 'batches'"}
    _, scores, failed = score(parts, detectors, loader(*ID_TEST))
    assert set(scores) == {"MaxLogit", "Gram", "fails"}
    assert failed == {
        "raises": "KeyError: 'weights'",
        "undefined": "1 of 30 scores are NaN or infinite",
    }


def in_a_graph():
    gc.collect()
    return {id(o): o for o in gc.get_objects() if isinstance(o, Tensor) and o.grad_fn is not None}


def test_no_detector_holds_on_to_what_the_network_computed(model):
    detectors = detectors_for(Parts(model), ["NACUE", "GradNorm", "ODIN", "Gram"])
    before = in_a_graph()  # of other tests
    for name, detector in detectors.items():
        if detector.requires_fit:
            detector.fit(loader(*TRAIN))
        detector.predict(TRAIN[0][:8])
        assert not in_a_graph().keys() - before.keys(), name


def test_a_fit_that_fails_leaves_no_hooks_behind(model):
    parts = Parts(model)
    nac = detectors_for(parts, ["NACUE"])["NACUE"]
    nac.feature_reduce = None
    failed = fit(parts, {"NACUE": nac}, loader(*TRAIN))
    assert "NoneType" in failed["NACUE"]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_is_left_as_it_was(model):
    before = copy.deepcopy(model.state_dict())
    parts = Parts(model)
    detectors = detectors_for(parts, ["NACUE", "GradNorm", "GradUncertainty", "Gram", "ODIN"])
    fit(parts, detectors, loader(*TRAIN))
    score(parts, detectors, loader(*ID_TEST))
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_vra_fits_a_group_of_channels_at_a_time(model, monkeypatch):
    parts = Parts(model)
    whole, pieces = (detectors_for(parts, ["VRA-maps"]) for _ in range(2))
    fit(parts, whole, loader(*TRAIN))
    monkeypatch.setattr(maps, "CHUNK", 5000)
    fit(parts, pieces, loader(*TRAIN))
    assert torch.equal(whole["VRA-maps"]._upper_threshold, pieces["VRA-maps"]._upper_threshold)
    assert isinstance(pieces["VRA-maps"], ood.VRA)


def test_scores_that_are_only_rounding_are_no_scores():
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=4).eval()
    torch.nn.init.normal_(network.get_classifier().weight, std=30)
    parts = Parts(network)
    detectors = detectors_for(network, ["RankFeat", "MaxLogit"])

    def scored(size, label):
        images = torch.randn(20, 3, size, size)
        return score(parts, detectors, [(images, torch.full((20,), label))])[1:]

    # maps of one place are of rank 1: nothing is left of them
    scores, failed = scored(32, 0)
    assert set(scores) == {"MaxLogit"}
    assert "differ by rounding alone" in failed["RankFeat"]
    # OOD images may all be alike, and larger maps have scores
    assert set(scored(32, -1)[0]) == set(scored(64, 0)[0]) == set(detectors)


@pytest.mark.parametrize(
    ("known", "unknown", "reason"),
    [
        ([-1.0, -1.0], [-1.0], "all 3 images get one score, -1"),
        ([7.0, 7.000001], [7.0], "all 3 images get one score but for rounding, 7"),
        ([-1.0, -1.0], [-0.9], ""),
        ([0.0, 1e-9], [3e-9], ""),
    ],
)
def test_one_score_for_all_but_for_rounding_tells_nothing(known, unknown, reason):
    assert one_score(np.float32(known), np.float32(unknown)) == reason
