"""What the p-values of a file promise where scores tie: they come from the file's own scores, and
differences as runtimes have them do not decide."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from evaluation.benchmarks.promises.ties import (
    CLASSES,
    bound,
    confident_network,
    folder_of,
    in_node,
    photographs,
    rates,
    tensors_of,
    why_no_node,
    with_ties,
)
from isomax.calibration import Calibration
from isomax_adapters.onnx import export
from isomax_adapters.onnx.running import WAYS
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import load_calibration

NAMES = ("GEN", "MaxSoftmax", "ViM", "MahalanobisPP")
COUNT, BLACK = 120, 30


@pytest.fixture(scope="module")
def confident():
    return confident_network()


@pytest.fixture(scope="module")
def files(confident, tmp_path_factory):
    """Of each detector file, folder and detector, calibrated on images of which some are one black
    frame; and these images, the black ones first."""
    parts, batches = confident
    place = tmp_path_factory.mktemp("files")
    known = with_ties(COUNT, BLACK, 0)
    found = {}
    for name in NAMES:
        folder, detector = folder_of(parts, name, batches, known, place)
        found[name] = export(folder, place / f"{name}.onnx"), folder, detector
    return found, known


def verdicts(path, images, way):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = way.threads
    if not way.optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    batches = [images[at : at + way.together] for at in range(0, len(images), way.together)]
    rows = [session.run(["p_value", "is_ood"], {"images": np.stack(batch)}) for batch in batches]
    p_values, is_ood = (np.concatenate(part) for part in zip(*rows, strict=True))
    return p_values, is_ood


@pytest.mark.parametrize("name", NAMES)
def test_an_image_ties_with_its_like_however_the_file_is_run(name, files):
    found, known = files
    path, folder, detector = found[name]
    metadata = Scorer(path).metadata
    assert metadata["scored_by"] == "file"
    assert metadata["tolerance"] > 0.9 * load_calibration(folder).tolerance > 0
    black = known[0]
    for way in WAYS:
        p_values, is_ood = verdicts(path, known, way)
        assert (p_values[:BLACK] > BLACK / (COUNT + 1)).all()
        assert is_ood.mean() <= 0.05  # of the calibration images themselves
        alone, _ = verdicts(path, [black], way)
        assert alone[0] > BLACK / (COUNT + 1)
    # PyTorch's scores have the same verdicts
    some = [black, *known[-9:]]
    with torch.no_grad():
        scores = torch.cat([detector.predict(x[None]) for x in tensors_of(some)])
    of_file = Calibration.from_dict(metadata)
    assert float(of_file.p_values(scores)[0]) > BLACK / (COUNT + 1)
    assert of_file.rejects(scores).tolist() == verdicts(path, some, WAYS[0])[1].tolist()


def test_confident_images_are_no_false_alarms(files):
    """GEN cuts probabilities off at 1e-7, where confident images tie; one unit in the last place
    rejected all of them."""
    path = files[0]["GEN"][0]
    scorer = Scorer(path)
    _, counts = np.unique(np.array(scorer.metadata["scores"], np.float32), return_counts=True)
    assert counts[:-1].max(initial=0) >= 10  # beside the black ones
    fresh = [row.is_ood for row in scorer.score(photographs(60, seed=2))]
    assert np.mean(fresh) < 0.15


def test_false_alarms_over_many_divisions(confident, tmp_path):
    parts, batches = confident
    node = not why_no_node()
    for runtime, values in rates(
        parts, "GEN", batches, with_ties(160, 24, 16), tmp_path, node
    ).items():
        assert values.mean() <= bound(values), runtime


def test_a_browser_has_the_files_verdicts(files):
    if reason := why_no_node():
        pytest.skip(reason)
    found, known = files
    for name in NAMES:
        path = found[name][0]
        theirs = in_node(path, known)
        assert (theirs["p_value"][:BLACK] > BLACK / (COUNT + 1)).all()
        assert np.mean(theirs["is_ood"]) <= 0.05


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_rejected_and_said(value, files, tmp_path):
    path = files[0]["MaxSoftmax"][0]
    model = onnx.load(path)
    (weight,) = (t for t in model.graph.initializer if t.dims == [CLASSES] and t.data_type == 1)
    spoiled = onnx.numpy_helper.to_array(weight).copy()
    spoiled[0] = value
    weight.CopyFrom(onnx.numpy_helper.from_array(spoiled, weight.name))
    onnx.save(model, tmp_path / "m.onnx")
    image = files[1][-1]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    p_value, is_ood = session.run(["p_value", "is_ood"], {"images": image[None]})
    assert is_ood.all()
    assert p_value[0] <= 1 / (COUNT + 1)
    (row,) = Scorer(tmp_path / "m.onnx").score([image], top=2)
    assert row.is_ood
    assert row.error.startswith(f"the network gave {'NaN' if np.isnan(value) else 'infinite'}")
    assert "\n" not in row.error
    assert row.label == -1
    assert row.top == ()
