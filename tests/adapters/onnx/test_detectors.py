"""Every detector that a file can hold gives pytorch-ood's own scores there, whatever the number of
images."""

import onnxruntime
import pytest
import timm
import torch

from evaluation.benchmarks.sweeps.detectors import see_every_class
from isomax_adapters.onnx.network import SCORE, export_network, with_detector, with_maps
from isomax_adapters.onnx.scorers import obstacle_to_export
from isomax_adapters.pytorch_ood import NAMES, Parts, detectors_for, kind_of
from isomax_adapters.timm.attaching import classifier_names
from isomax_evaluation.detection.fitting import fit

SIZE = (3, 32, 32)


def parts_of(name):
    torch.manual_seed(0)
    return Parts(timm.create_model(name, num_classes=4).eval())


SOFTMAX, DISTANCE = parts_of("test_resnet"), parts_of("isomax_test_resnet")
CASES = [
    (parts, name)
    for parts in (SOFTMAX, DISTANCE)
    for name in detectors_for(parts, NAMES)
    if obstacle_to_export(name, parts, SIZE) is None
    and (parts is SOFTMAX or name not in detectors_for(SOFTMAX, NAMES))
]


@pytest.fixture(scope="module")
def fitted():
    images = list(torch.randn(80, *SIZE).split(40))
    found = {}
    for parts in (SOFTMAX, DISTANCE):
        names = [name for mine, name in CASES if mine is parts]
        detectors = detectors_for(parts, names)
        if parts is SOFTMAX:
            loader = see_every_class(parts, images)
        else:
            torch.nn.init.normal_(parts.classifier.prototypes)
            loader = [(x, parts.model(x).argmax(dim=1).detach()) for x in images]
        assert not fit(parts, detectors, loader, seed=0)
        networks = export_network(parts.model, SIZE), with_maps(parts, SIZE)
        found[id(parts)] = detectors, networks
    return found


def test_dice_is_one_product(fitted):
    """Of images, classes and features none is held, which OpenVINO rewrites wrongly."""
    detectors, (plain, _) = fitted[id(SOFTMAX)]
    classifiers = classifier_names(SOFTMAX.model)
    scored = with_detector(plain, detectors["DICE"], "DICE", SOFTMAX, classifiers)
    kinds = [node.op_type for node in scored.scorer.graph.node]
    assert {"MatMul", "Gemm"} & set(kinds)
    assert not {"Unsqueeze", "ReduceSum"} & set(kinds)


def test_most_detectors_can_be_in_a_file():
    assert len(CASES) >= 36


@pytest.mark.parametrize(("parts", "name"), CASES, ids=[name for _, name in CASES])
def test_the_files_scores_are_pytorch_oods_own(parts, name, fitted):
    detectors, (plain, maps) = fitted[id(parts)]
    detector = detectors[name]
    network = maps if kind_of(detector) == "feature_maps" else plain
    whole = with_detector(network, detector, name, parts, classifier_names(parts.model))
    session = onnxruntime.InferenceSession(whole.whole.SerializeToString())
    pixels = torch.randn(7, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = detector.predict(pixels).double()
    for batch in (pixels[:1], pixels):
        (scores,) = session.run([SCORE], {"pixels": batch.numpy()})
        assert scores.shape == (len(batch),)
        found, wanted = torch.from_numpy(scores).double(), expected[: len(batch)]
        scale = wanted.abs().clamp(min=float(expected.std()))
        assert float(((found - wanted).abs() / scale).max()) < 1e-3
