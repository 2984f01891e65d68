"""Half precision and 8 bits: the backbone's, never the head's."""

import ast
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from isomax_adapters.onnx import export
from isomax_adapters.onnx import exporting as exporting_module
from isomax_adapters.onnx import images as images_module
from isomax_adapters.onnx import precision as precision_module
from isomax_adapters.onnx.images import Labelled
from isomax_adapters.onnx.judging import why_another_model
from isomax_adapters.onnx.network import export_network
from isomax_adapters.onnx.precision import SCOPES, join, split, to_int8
from isomax_adapters.onnx.verifying import ExportError
from isomax_adapters.runtime.scorer import Scorer
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
    theirs = load_calibration(folder)
    np.testing.assert_allclose(metadata["scores"], theirs.scores, atol=1e-5)
    assert metadata["guarantee"] == "not established"
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
    # older ONNX Runtimes compute it in 8 bits otherwise, and give all images the same features
    softmaxes = [node for node in reduced.graph.node if node.op_type == "Softmax"]
    assert {fed_by[node.input[0]] for node in softmaxes} == {"MatMul"}
    exact, rough = _run(network, x), _run(join(reduced, head), x)
    assert np.sqrt(((exact - rough) ** 2).mean()) < 0.25 * exact.std()


def test_what_cannot_be_used_is_refused_before_work_starts(folder, images, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("work has started")

    monkeypatch.setattr(exporting_module, "export_network", never)
    bad = tmp_path / "bad"
    bad.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(bad / f"{number}.png")
    (bad / "b.png").write_bytes(b"no image")
    path, few = tmp_path / "m.onnx", Labelled(images[:2], [0, 1])
    for arguments, message in (
        (("int4",), "unknown precision 'int4'; choose from fp32, fp16, int8"),
        (("int8",), "int8 is calibrated on in-distribution images"),
        (("fp16", images), "calibration images are for int8; fp16 takes none"),
        (("int8", []), "no calibration images"),
        (("int8", images[:31]), "31 calibration images are too few; int8 takes at least 32"),
        (("int8", sorted(bad.iterdir()) * 2), r"b\.png cannot be read"),
        (("fp32", None, few), "selection images are for fp16 and int8; fp32 keeps what the folder"),
        (("fp16", None, None, few), "2 held-out images are too few; alpha=0.3 takes 3"),
        (("fp16", None, Labelled(images[:3], [0])), "selection: 3 images and 1 labels"),
        (("fp16", None, Labelled([], [])), "selection: 0 images"),
        (
            ("fp16", None, Labelled(images[:2], [0, 6])),
            r"labels lie in \[0, 6\]; expected \[0, 6\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            export(folder, path, *arguments)
    assert not path.exists()


def test_a_reduction_that_loses_the_model_is_not_written(folder, images, tmp_path, monkeypatch):
    def one_range_for_all(backbone, pixels):
        return to_int8(backbone, [1e4 * batch for batch in pixels])

    monkeypatch.setattr(exporting_module, "to_int8", one_range_for_all)
    message = r"int8 file disagrees with the model: .*; most is lost in \w.* \(-?\d+ dB\), "
    with pytest.raises(ExportError, match=message):
        export(folder, tmp_path / "m.onnx", "int8", images[:32])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def unseen():
    return list(photographs(60, np.random.default_rng(6)))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_reduced_file_is_calibrated_by_its_own_scores(
    precision, folder, plain, images, unseen, tmp_path
):
    labels = Scorer(plain).run(np.stack([image[:33, :47] for image in unseen]))["label"]
    path = export(
        folder,
        tmp_path / "m.onnx",
        precision,
        images[:40] if precision == "int8" else None,
        held_out=Labelled(unseen, labels.tolist()),
    )
    scorer, theirs = Scorer(path), load_calibration(folder)
    scores = sorted(result.score for result in scorer.score(unseen, batch_size=1))
    np.testing.assert_allclose(scorer.metadata["scores"], scores, rtol=1e-5)
    assert scorer.metadata["samples"] == 60
    highest = np.float64(scorer.metadata["scores"][42]) + scorer.metadata["tolerance"]
    assert scorer.threshold == np.float32(highest)  # the 43rd of 60 for 30%
    assert scorer.threshold != theirs.threshold
    assert scorer.metadata["guarantee"] == theirs.guarantee == "established"
    p_values = [result.p_value for result in scorer.score(unseen, batch_size=1)]
    ties = sum(scorer.metadata["scores"][42] < score <= scorer.threshold for score in scores)
    assert np.mean(np.array(p_values) <= 0.3) == pytest.approx((17 - ties) / 60)
    assert ties <= 2


def test_a_reduced_file_is_judged_by_accuracy(folder, plain, images, tmp_path):
    """The labels are those that the reduced file does not give where it gives others."""
    seen = np.stack([image[:33, :47] for image in images])
    labels = Scorer(plain).run(seen)["label"].tolist()
    good = Labelled(list(seen), labels)
    export(folder, tmp_path / "m.onnx", "int8", images[:32], good)
    assert Scorer(tmp_path / "m.onnx").run(seen)["label"].tolist() != labels


def test_a_range_that_one_channel_takes_is_blamed(folder, images, tmp_path, monkeypatch):
    """A channel 3,000 times as large as the others, and the next weights as much smaller."""
    model = load_model(folder)
    network = export_network(model, (3, 64, 64))
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    tensors = {tensor.name: tensor for tensor in network.graph.initializer}
    relus = {node.input[0]: node for node in network.graph.node if node.op_type == "Relu"}
    first, second = next(
        (one, two)
        for one in convolutions
        for two in convolutions
        if one.output[0] in relus and list(relus[one.output[0]].output) == list(two.input[:1])
    )
    for name, place in ((first.input[1], 0), (first.input[2], 0), (second.input[1], 1)):
        values = onnx.numpy_helper.to_array(tensors[name]).copy()
        values[(slice(None),) * place + (0,)] *= 3000.0 ** (1 - 2 * place)
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    monkeypatch.setattr(exporting_module, "export_network", lambda *given: network)
    with pytest.raises(ExportError) as error:
        export(folder, tmp_path / "m.onnx", "int8", images[:32])
    scopes = next(p.value for p in first.metadata_props if p.key == SCOPES)
    module = ast.literal_eval(scopes)[-2]
    assert f"most is lost in {module} (" in str(error.value)


def test_what_is_lost():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 200)
    logits = generator.standard_normal((200, 5)) + 6 * np.eye(5)[labels]
    scores = -logits.max(axis=1)
    near = logits + 0.1 * generator.standard_normal(logits.shape)
    assert not why_another_model(logits, near, scores, -near.max(axis=1), 1.0, labels)
    shifted = -near.max(axis=1) + 3  # the file has calibration scores of its own
    assert not why_another_model(logits, near, scores, shifted, 1.0, labels)
    flat = why_another_model(logits, logits / 4, scores, scores, 1.0)
    assert flat.startswith("the mean margin falls from 0.9")
    assert flat.endswith("; 100% of 200 labels the same")
    other = generator.permutation(scores)
    assert "the scores correlate by" in why_another_model(logits, near, scores, other, 1.0)
    assert why_another_model(logits, logits * np.nan, scores, scores * np.nan, 1.0)
    swapped = logits.copy()
    swapped[:30] = swapped[:30, ::-1]
    lost = why_another_model(logits, swapped, scores, scores, 1.0, labels)
    assert "the accuracy falls from 99" in lost or "the accuracy falls from 100" in lost


def test_labels_that_the_model_is_not_sure_of_are_not_missed():
    """Other labels for a third of the images, and nothing is lost: raw agreement would object."""
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((600, 5)) + 8 * np.eye(5)[generator.integers(0, 5, 600)]
    logits[::2] = 0.01 * generator.standard_normal((300, 5))
    near = logits + 0.02 * generator.standard_normal(logits.shape)
    assert (near.argmax(axis=1) == logits.argmax(axis=1)).mean() < 0.8
    assert not why_another_model(logits, near, logits.max(axis=1), near.max(axis=1), 1.0)


ACTIVATIONS = {
    "ReLU6": """low = Constant<value_float=0.0>()
        high = Constant<value_float=6.0>()
        kept = Clip(wide, low, high)""",
    "HardSwish": "kept = HardSwish(wide)",
    "HardSigmoid": "kept = HardSigmoid<alpha=0.1666667, beta=0.5>(wide)",
    "SiLU": "gate = Sigmoid(wide)  kept = Mul(wide, gate)",
    "Sigmoid": "kept = Sigmoid(wide)",
}


def two_layers(activation, first, bias, second, group=1):
    network = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["": 18]>
    network (float[N, 8, 16, 16] pixels) => (float[N, 4, 16, 16] features) {{
        wide = Conv<group={group}, pads=[1, 1, 1, 1]>(pixels, first, bias)
        {ACTIVATIONS[activation]}
        features = Conv(kept, second)
    }}
    """)
    tensors = {"first": first, "bias": bias, "second": second}
    network.graph.initializer.extend(
        onnx.numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in tensors.items()
    )
    return network


def error_of(network, pixels):
    exact = _run(network, torch.from_numpy(pixels[0]))
    reduced = to_int8(network, pixels)
    off = _run(reduced, torch.from_numpy(pixels[0])) - exact
    return reduced, float(np.sqrt((off**2).mean()) / exact.std())


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_ranges_are_those_that_an_activation_lets_through(activation, monkeypatch):
    """Two channels lie where it is flat, and take most of the convolution's range."""
    generator = np.random.default_rng(0)
    flat = {"ReLU6": (100, 90), "HardSwish": (-100, -90), "SiLU": (-100, -90)}
    bias = np.array([*flat.get(activation, (-100, 100)), *np.zeros(6)])
    first, second = 0.1 * generator.standard_normal((8, 8, 3, 3)), generator.random((4, 8, 1, 1))
    network = two_layers(activation, first, bias, second)
    pixels = generator.standard_normal((32, 1, 8, 16, 16)).astype(np.float32)
    reduced, off = error_of(network, pixels)
    assert off < 0.05
    assert "Clip" not in [node.op_type for node in reduced.graph.node]
    kinds = tuple(kind for kind in precision_module._QUANTIZED if kind != "Clip")
    monkeypatch.setattr(precision_module, "_QUANTIZED", kinds)
    monkeypatch.setattr(precision_module, "_clipped_before_gates", lambda backbone: backbone)
    assert error_of(network, pixels)[1] > 3 * off


@pytest.mark.parametrize("group", [1, 2, 8])
def test_no_pair_of_products_overflows(group):
    """Two activations times two weights stay in 16 bits, in whatever order rows are added up."""
    generator = np.random.default_rng(0)
    first = np.abs(generator.standard_normal((8, 8 // group, 3, 3)))
    second = generator.standard_normal((4, 8, 1, 1))
    network = two_layers("ReLU6", first, np.zeros(8), second, group)
    pixels = generator.standard_normal((32, 1, 8, 16, 16)).astype(np.float32)
    reduced, off = error_of(network, pixels)
    assert off < 0.03
    found = {t.name: onnx.numpy_helper.to_array(t) for t in reduced.graph.initializer}
    for name in ("first_quantized", "second_quantized"):
        weights = found[name].astype(int)
        assert found[name].dtype == np.int8
        largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
        if group == 8 and name == "first_quantized":  # depthwise: one by one, in 32 bits
            assert (largest == 127).all()
            continue
        assert (largest >= 64).all()  # 7 bits at the least
        assert largest.max() > 64
        for order in (weights, np.moveaxis(weights, 1, -1)):
            row = order.reshape(len(weights), -1)
            sums = 255 * (row[:, 1:] + row[:, :-1])
            assert sums.max(initial=0) <= 2**15 - 1
            assert sums.min(initial=0) >= -(2**15)


def test_a_channel_that_is_off_keeps_its_bias():
    """In units of weights of 1e-12 it would not fit into 32 bits."""
    generator = np.random.default_rng(0)
    first = generator.standard_normal((8, 8, 3, 3))
    first[:4] = 1e-12
    network = two_layers("ReLU6", first, np.full(8, 3.0), generator.random((4, 8, 1, 1)))
    pixels = generator.standard_normal((32, 1, 8, 16, 16)).astype(np.float32)
    assert error_of(network, pixels)[1] < 0.03


def test_calibration_images_are_spread_over_all(monkeypatch):
    """A folder lists one class after the other: the first images are not enough."""
    monkeypatch.setattr(images_module, "CALIBRATION_IMAGES", 3)
    monkeypatch.setattr(images_module, "FEWEST_CALIBRATION_IMAGES", 3)
    chosen = images_module.calibration_sources("int8", [f"{n}.png" for n in range(9)])
    assert chosen == ["0.png", "4.png", "8.png"]


@pytest.mark.parametrize(("count", "step"), [(32, 1), (130, 2)])
def test_the_file_is_verified_on_images_spread_over_all(count, step, folder, tmp_path, monkeypatch):
    verified = []

    def record(exported, path, model, config, calibration, precision, batches, *rest):
        verified.extend(int(batch[0, 0, 0, 0]) for batch in batches)

    monkeypatch.setattr(exporting_module, "to_int8", lambda backbone, pixels: backbone)
    monkeypatch.setattr(exporting_module, "verify", record)
    numbered = [np.full((8, 8, 3), number, dtype=np.uint8) for number in range(count)]
    export(folder, tmp_path / "m.onnx", "int8", numbered)
    assert verified == list(range(0, count, step))


def _run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"pixels": x.numpy()})[0]
