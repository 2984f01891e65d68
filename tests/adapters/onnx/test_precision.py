"""Half precision and 8 bits: the backbone's, never the head's."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from isomax_adapters.onnx import export
from isomax_adapters.onnx import exporting as exporting_module
from isomax_adapters.onnx.exporting import ExportError, export_network
from isomax_adapters.onnx.precision import join, split, to_int8
from isomax_adapters.onnx.runtime import Scorer
from isomax_adapters.timm import load_calibration, load_model

from .test_export import CLASSES, make_folder, photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def images():
    return list(photographs(48, np.random.default_rng(5)))


@pytest.fixture(scope="module")
def plain(folder):
    return export(folder, folder.parent / "plain.onnx")


@pytest.mark.parametrize(
    ("precision", "share", "kinds"),
    [
        ("fp16", 0.55, {onnx.TensorProto.FLOAT16}),
        ("int8", 0.4, {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}),
    ],
)
def test_the_backbone_shrinks_and_the_head_does_not(
    precision, share, kinds, folder, plain, images, tmp_path
):
    given = images[:40] if precision == "int8" else None
    path = export(folder, tmp_path / "m.onnx", precision, given)
    assert path.stat().st_size < share * plain.stat().st_size
    model = onnx.load(path)
    assert {opset.domain for opset in model.opset_import} == {""}
    features = load_model(folder).num_features
    weights = {t.name: (tuple(t.dims), t.data_type) for t in model.graph.initializer}
    head = {kind for shape, kind in weights.values() if shape == (features, CLASSES)}
    assert head == {onnx.TensorProto.FLOAT}
    convolutions = {kind for shape, kind in weights.values() if len(shape) == 4}
    assert convolutions
    assert convolutions <= kinds
    metadata = json.loads({p.key: p.value for p in model.metadata_props}["isomax"])
    assert metadata["precision"] == precision
    assert metadata["threshold"] == load_calibration(folder).threshold
    theirs, ours = Scorer(plain).score(images), Scorer(path).score(images)
    assert np.mean([a.label == b.label for a, b in zip(theirs, ours, strict=True)]) >= 0.9
    scores = np.array([[a.score, b.score] for a, b in zip(theirs, ours, strict=True)])
    assert np.abs(scores[:, 0] - scores[:, 1]).mean() < 0.5 * scores[:, 0].std()
    assert not np.array_equal(scores[:, 0], scores[:, 1])


@pytest.mark.parametrize("name", ["isomax_test_resnet", "softmax_test_vit"])
def test_backbone_and_head_are_the_whole_network(name, tmp_path):
    size = (3, 160, 160) if "vit" in name else (3, 64, 64)
    model = load_model(make_folder(tmp_path / "m", name, {"input_size": size}))
    network = export_network(model, size)
    backbone, head = split(network, ["fc" if "resnet" in name else "head"])
    x = torch.randn(3, *size)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True).numpy()
    np.testing.assert_allclose(_run(backbone, x), features, rtol=1e-3, atol=1e-4)
    assert np.array_equal(_run(join(backbone, head), x), _run(network, x))
    with pytest.raises(ValueError, match="comes from nothing_of_it"):
        split(network, ["nothing_of_it"])


def test_residuals_between_layer_normalisations_stay_float(tmp_path):
    """Quantised too, a random transformer's logits are off by more than half of their spread."""
    size = (3, 160, 160)
    model = load_model(make_folder(tmp_path / "m", "isomax_test_vit", {"input_size": size}))
    network = export_network(model, size)
    backbone, head = split(network, ["head"])
    x = torch.randn(4, *size)
    reduced = to_int8(backbone, [part.numpy() for part in x.split(1)])
    fed_by = {name: node.op_type for node in reduced.graph.node for name in node.output}
    products = [node for node in reduced.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert sum(fed_by.get(node.input[0]) == "DequantizeLinear" for node in products) >= 12
    exact, rough = _run(network, x), _run(join(reduced, head), x)
    assert np.sqrt(((exact - rough) ** 2).mean()) < 0.25 * exact.std()


def test_what_cannot_be_used_is_refused_before_work_starts(folder, images, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("work has started")

    monkeypatch.setattr(exporting_module, "export_network", never)
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad"
    bad.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(bad / f"{number}.png")
    (bad / "b.png").write_bytes(b"no image")
    path = tmp_path / "m.onnx"
    for arguments, message in (
        (("int4",), "unknown precision 'int4'; choose from fp32, fp16, int8"),
        (("int8",), "int8 is calibrated on in-distribution images"),
        (("fp16", images), "calibration images are for int8; fp16 takes none"),
        (("int8", tmp_path / "empty"), "no calibration images in"),
        (("int8", images[:31]), "31 calibration images are too few; int8 takes at least 32"),
        (("int8", bad), r"b\.png cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            export(folder, path, *arguments)
    assert not path.exists()


def test_a_reduction_that_loses_the_model_is_not_written(folder, images, tmp_path, monkeypatch):
    def one_range_for_all(backbone, pixels):
        return to_int8(backbone, [1e4 * batch for batch in pixels])

    monkeypatch.setattr(exporting_module, "to_int8", one_range_for_all)
    with pytest.raises(ExportError, match="int8 file disagrees with the model"):
        export(folder, tmp_path / "m.onnx", "int8", images[:32])
    assert list(tmp_path.iterdir()) == []


def test_calibration_images_are_spread_over_a_folder(folder, images, tmp_path, monkeypatch):
    """A folder lists one class after the other: the first images are not enough."""
    monkeypatch.setattr(exporting_module, "CALIBRATION_IMAGES", 3)
    monkeypatch.setattr(exporting_module, "FEWEST_CALIBRATION_IMAGES", 3)
    for number in range(9):
        Image.fromarray(images[0]).save(tmp_path / f"{number}.png")
    chosen = exporting_module._calibration_sources("int8", tmp_path)
    assert [source[-5] for source in chosen] == ["0", "4", "8"]


@pytest.mark.parametrize(("count", "step"), [(32, 1), (130, 2)])
def test_the_file_is_verified_on_images_spread_over_all(count, step, folder, tmp_path, monkeypatch):
    verified = []

    def record(exported, path, model, config, calibration, precision, batches):
        verified.extend(int(batch[0, 0, 0, 0]) for batch in batches)

    monkeypatch.setattr(exporting_module, "to_int8", lambda backbone, pixels: backbone)
    monkeypatch.setattr(exporting_module, "verify", record)
    numbered = [np.full((8, 8, 3), number, dtype=np.uint8) for number in range(count)]
    export(folder, tmp_path / "m.onnx", "int8", numbered)
    assert verified == list(range(0, count, step))


def _run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"pixels": x.numpy()})[0]
