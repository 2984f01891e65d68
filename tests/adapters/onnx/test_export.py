"""The exported file against timm's transform and the PyTorch model."""

import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import PIL
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from PIL import Image

from isomax.calibration import Calibration, p_values
from isomax_adapters.onnx import export, exporting
from isomax_adapters.onnx.exporting import ExportError
from isomax_adapters.onnx.graph import preprocessing, verdict
from isomax_adapters.runtime.decoding import Decoding, from_array, open_image
from isomax_adapters.runtime.metadata import FIELDS
from isomax_adapters.runtime.p_values import Steps
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import load_calibration, load_model, save_model

from .make_model import build

CLASSES = 6


SIZES = ((60, 90), (90, 60), (64, 64), (33, 47))


def photographs(count, generator, sizes=SIZES, channels=3):
    """Smooth shapes and grain, in several sizes."""
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        coarse = from_array(generator.integers(0, 256, (6, 6, channels), dtype=np.uint8))
        image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=int)
        grain = generator.integers(-10, 11, (height, width, channels))
        yield np.clip(image.reshape(grain.shape) + grain, 0, 255).astype(np.uint8)


def make_folder(folder, name="isomax_test_resnet", config=None, seed=0, images=None):
    """A model with random weights that tells images apart, calibrated to reject 30% of them.

    Its normalisation and its prototypes (or weights) come from the images; straight from random
    numbers it would see no difference between them, and no error in its pixels either.
    """
    torch.manual_seed(seed)
    config = {"input_size": (3, 64, 64), **(config or {})}
    channels = config["input_size"][0]
    model = timm.create_model(name, num_classes=CLASSES, in_chans=channels)
    if images is None:
        arrays = photographs(60, np.random.default_rng(seed), channels=channels)
        images = [from_array(array) for array in arrays]
    settings = timm.data.resolve_model_data_config(model) | config
    transform = timm.data.create_transform(**settings)
    pixels = torch.stack([transform(image) for image in images])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the statistics of these images
        model(pixels)
        model.eval()
        features = model.forward_head(model.forward_features(pixels), pre_logits=True)
        mean = features.mean(dim=0)
        spread = (features - mean).norm(dim=1).mean()
        directions = torch.nn.functional.normalize(features[:CLASSES] - mean)
        classifier = model.get_classifier()
        if hasattr(classifier, "prototypes"):
            classifier.prototypes.copy_(mean + 3 * spread * directions)
            if hasattr(classifier, "distance_scale"):
                classifier.distance_scale.fill_(2.0)
        else:
            classifier.weight.copy_(4 / spread * directions)
            classifier.bias.copy_(-classifier.weight @ mean)
        logits = model(pixels)
    head = getattr(classifier, "score", "entropic_score")
    calibration = Calibration.fit(logits, logits.argmax(dim=1), head, alpha=0.3)
    names = [f"class {label}" for label in range(CLASSES)]
    return save_model(model, folder, names, config, calibration)


def tells_apart(scores, labels, is_ood, tolerance=1e-3):
    """Whether agreement means something: another image would have another answer."""
    return (
        np.std(scores) >= 50 * tolerance and len(set(labels)) >= 3 and 0.1 <= np.mean(is_ood) <= 0.9
    )


def compare(folder, path, images, tolerance=1e-3):
    """Labels, scores and verdicts of the Scorer and of PyTorch: arrays, or paths of images."""
    model, calibration = load_model(folder), load_calibration(folder)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config)
    grey_range = json.loads((folder / "config.json").read_text()).get("grey_range")
    opened = [
        Decoding(config["input_size"][0], grey_range)(open_image(i))
        if isinstance(i, Path)
        else from_array(i)
        for i in images
    ]
    with torch.no_grad():
        logits = torch.cat([model(transform(image)[None]) for image in opened])
    scores, labels = calibration.score_of(logits).numpy(), logits.argmax(dim=1).tolist()
    assert tells_apart(scores, labels, scores > calibration.threshold, tolerance)
    results = Scorer(path).score(images)
    assert not any(result.error for result in results)
    assert [result.label for result in results] == labels
    np.testing.assert_allclose([r.score for r in results], scores, rtol=0, atol=tolerance)
    confidence = (logits / calibration.temperature).softmax(dim=1).amax(dim=1).numpy()
    np.testing.assert_allclose([r.confidence for r in results], confidence, atol=0.02)
    sure = np.abs(scores - calibration.threshold) > tolerance
    verdicts = np.array([r.is_ood for r in results])
    assert (verdicts == (scores > calibration.threshold))[sure].all()
    return len(results)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("model") / "m")
    return folder, export(folder, folder.parent / "model.onnx")


def test_it_is_one_valid_file_with_the_promised_interface(exported):
    folder, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx"}
    assert [i.name for i in model.graph.input] == ["images"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["N", "H", "W", 3]
    assert [o.name for o in model.graph.output] == [
        "label",
        "confidence",
        "score",
        "is_ood",
        "logits",
        "probabilities",
        "p_value",
    ]
    metadata = json.loads({p.key: p.value for p in model.metadata_props}["isomax"])
    calibration = load_calibration(folder)
    assert set(metadata) == set(FIELDS)
    assert metadata["class_names"][2] == "class 2"
    assert metadata["threshold"] == pytest.approx(calibration.threshold, abs=1e-4)
    np.testing.assert_allclose(metadata["scores"], calibration.scores, atol=1e-5)
    assert metadata["scored_by"] == "file"
    assert 0 < calibration.tolerance <= metadata["tolerance"] < 1e-4
    assert metadata["preprocessing"]["input_size"] == [3, 64, 64]
    assert metadata["provenance"]["architecture"] == "isomax_test_resnet"
    assert metadata["provenance"]["pillow"] == PIL.__version__


@pytest.mark.parametrize(
    "name",
    [
        "softmax_test_resnet",
        "isomax_test_resnet",
        "isomaxplus_test_resnet",
        "dismax_test_resnet",
        "isomax_test_efficientnet",
        "isomax_test_convnext",
    ],
)
def test_every_head_agrees_with_pytorch(name, tmp_path):
    if "convnext" in name and Version(torch.__version__) < Version("2.14"):
        pytest.skip("torch made of its pooling a loop that add_prefix of onnx does not rename")
    # with bilinear resizing of images as small as these, halves rounded otherwise move the scores
    # by up to 5e-3, see test_preprocessing_is_timms
    folder = make_folder(tmp_path / "m", name, {"interpolation": "bicubic"})
    path = export(folder, tmp_path / "m.onnx")
    images = list(photographs(24, np.random.default_rng(1)))
    assert compare(folder, path, images) == 24


@pytest.mark.parametrize(("interpolation", "share"), [("bicubic", 5e-4), ("bilinear", 0.015)])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "size"),
    [
        ("center", 0.875, (64, 64)),
        ("center", 1.0, (64, 64)),
        ("center", 0.9, (48, 80)),
        ("center", 0.875, (224, 224)),
        ("squash", 0.95, (64, 64)),
        ("squash", 1.0, (384, 384)),
        ("border", 1.0, (64, 48)),
    ],
)
def test_preprocessing_is_timms(interpolation, share, crop_mode, crop_pct, size):
    """To one grey level on a few pixels: half way, ONNX Runtime and Pillow round differently."""
    config = {
        "input_size": (3, *size),
        "interpolation": interpolation,
        "crop_mode": crop_mode,
        "crop_pct": crop_pct,
        "mean": (0.48, 0.45, 0.4),
        "std": (0.22, 0.23, 0.24),
    }
    session = onnxruntime.InferenceSession(preprocessing(config, 18, 10).SerializeToString())
    transform = timm.data.create_transform(**config)
    # small and large, wide, and so tall that Pillow 13 resizes their height first; no size whose
    # ratio to the target is a simple fraction: bilinear, that gives many a half
    sizes = ((61, 89), (91, 47), (201, 133), (33, 47), (301, 101), (641, 479), (1101, 503))
    for height, width in sizes:
        for image in photographs(2, np.random.default_rng(2), ((height, width),)):
            (ours,) = session.run(None, {"images": image[None]})
            theirs = transform(Image.fromarray(image)).numpy()
            assert ours.shape[1:] == theirs.shape
            # in grey levels: one of 255, divided by the standard deviation
            off = np.abs(ours[0] - theirs) * 255 * np.array(config["std"])[:, None, None]
            assert off.max() < 1.5, (height, width)
            assert (off > 0.5).mean() <= share, (height, width)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    ("crop_mode", "size"), [("center", (64, 64)), ("center", (48, 80)), ("border", (64, 48))]
)
def test_preprocessing_is_timms_with_other_channels(channels, crop_mode, size):
    config = {
        "input_size": (channels, *size),
        "interpolation": "bicubic",
        "crop_mode": crop_mode,
        "crop_pct": 0.9,
        "mean": (0.48, 0.45, 0.4, 0.1)[:channels],
        "std": (0.22, 0.23, 0.24, 0.5)[:channels],
    }
    session = onnxruntime.InferenceSession(preprocessing(config, 18, 10).SerializeToString())
    transform = timm.data.create_transform(**config)
    for image in photographs(
        6, np.random.default_rng(2), ((61, 89), (201, 133), (641, 201)), channels
    ):
        (ours,) = session.run(None, {"images": image[None]})
        off = np.abs(ours[0] - transform(from_array(image)).numpy())
        off *= 255 * np.array(config["std"])[:, None, None]
        assert off.max() < 1.5
        assert (off > 0.5).mean() <= 5e-4
    with pytest.raises(ValueError, match="mean has 2 values"):
        preprocessing(config | {"mean": (0.5, 0.5)}, 18, 10)


def test_a_model_of_one_channel_and_twelve_bits(tmp_path, monkeypatch):
    """As of a thermal camera, in files of 16 bits: scored, and calibrated on, as in 8 bits."""
    config = {"input_size": (1, 64, 64), "interpolation": "bicubic", "mean": (0.5,), "std": (0.2,)}
    folder = make_folder(tmp_path / "m", config=config)
    settings = json.loads((folder / "config.json").read_text()) | {"grey_range": [100, 4195]}
    (folder / "config.json").write_text(json.dumps(settings))
    eight, paths = list(photographs(32, np.random.default_rng(1), channels=1)), []
    for at, image in enumerate(eight):
        paths.append(tmp_path / f"{at}.{('png', 'tif')[at % 2]}")
        Image.fromarray((image[..., 0].astype(np.uint16) << 4) + 100).save(paths[-1])
    path = export(folder, tmp_path / "m.onnx")
    scorer = Scorer(path)
    assert scorer.decoding == Decoding(1, (100, 4195))
    assert compare(folder, path, paths) == 32
    found = [[row.score for row in scorer.score(images)] for images in (paths, eight)]
    assert found[0] == found[1]
    assert "not uint8 [H, W, 1]" in scorer.score(np.zeros((9, 9, 2), np.uint8))[0].error

    calibrated = []
    monkeypatch.setattr(exporting, "to_int8", lambda net, pixels: calibrated.append(pixels) or net)
    for images in (paths, eight):
        export(folder, tmp_path / "n.onnx", "int8", images)
    assert all(map(np.array_equal, *calibrated))
    with pytest.raises(ValueError, match=r"shape \(9, 9, 3\); expected uint8 \[H, W, 1\]"):
        export(folder, tmp_path / "n.onnx", "int8", [np.zeros((9, 9, 3), np.uint8)] * 32)
    (folder / "config.json").write_text(json.dumps(settings | {"grey_range": [9]}))
    with pytest.raises(ValueError, match=r"config\.json: grey range \[9\]"):
        export(folder, tmp_path / "n.onnx")


def test_a_model_of_four_channels_sees_the_fourth(tmp_path):
    config = {"input_size": (4, 64, 64), "interpolation": "bicubic"}
    config |= {"mean": (0.5,) * 4, "std": (0.2,) * 4}
    folder = make_folder(tmp_path / "m", config=config)
    path = export(folder, tmp_path / "m.onnx")
    paths, blind = [], []
    for at, image in enumerate(photographs(24, np.random.default_rng(1), channels=4)):
        paths.append(tmp_path / f"{at}.png")
        Image.fromarray(image).save(paths[-1])
        blind.append(image.copy())
        blind[-1][..., 3] = 255
    assert compare(folder, path, paths) == 24
    scores = [[row.score for row in Scorer(path).score(images)] for images in (paths, blind)]
    assert not np.isclose(*scores).any()


def test_pillow_before_13_resizes_the_width_first(monkeypatch):
    monkeypatch.setattr("PIL.__version__", "12.3.0")
    config = {"input_size": (3, 64, 64), "interpolation": "bicubic", "crop_pct": 1.0}
    config |= {"mean": (0, 0, 0), "std": (1 / 255,) * 3}
    session = onnxruntime.InferenceSession(preprocessing(config, 18, 10).SerializeToString())
    (image,) = photographs(1, np.random.default_rng(2), ((301, 101),))
    (found,) = session.run(None, {"images": image[None]})
    narrow = Image.fromarray(image).resize((64, 301), Image.Resampling.BICUBIC)
    expected = np.asarray(narrow.resize((64, 190), Image.Resampling.BICUBIC), dtype=float)[63:127]
    assert (np.abs(found[0].transpose(1, 2, 0) - expected) > 0.5).mean() < 1e-3


@pytest.fixture(scope="module")
def real_images(tmp_path_factory):
    """60 full-size photographs and 500 small ones; of the archives only these are unpacked."""
    root = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = tmp_path_factory.mktemp("real")
    found = []
    for name, part, suffix, step in (
        ("photos", "", ".JPEG", 1),
        ("cifar10", "test/", ".jpg", 20),
    ):
        archive = root / f"{name}.tar"
        if not archive.is_file():
            pytest.skip(f"the real images are not at {root}")
        with tarfile.open(archive) as tar:
            members = [m for m in tar if part in m.name and m.name.endswith(suffix)]
            wanted = sorted(members, key=lambda m: m.name)[::step]
            tar.extractall(folder, sorted(wanted, key=lambda m: m.offset), filter="data")
        found.append([folder / member.name for member in wanted])
    return found


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_real_photographs_and_small_images(interpolation, real_images, tmp_path):
    """From the file on disk to the score."""
    photos, small = real_images
    assert (len(photos), len(small)) == (60, 500)
    config = {"input_size": (3, 160, 160), "crop_pct": 0.875, "interpolation": interpolation}
    seen = [Image.open(path).convert("RGB") for path in (*photos[::3], *small[::8])]
    folder = make_folder(tmp_path / "m", config=config, images=seen)
    path = export(folder, tmp_path / "m.onnx")
    assert compare(folder, path, photos) == 60
    assert compare(folder, path, small) == 500


def test_the_verdict_in_the_file_is_the_calibrations(exported):
    """Not Scorer's, which judges anew."""
    _, path = exported
    images = np.stack(list(photographs(24, np.random.default_rng(1), ((64, 64),))))
    session = onnxruntime.InferenceSession(path)
    outputs = ("label", "score", "is_ood", "probabilities", "confidence", "logits")
    label, score, is_ood, probabilities, confidence, logits = session.run(
        outputs, {"images": images}
    )
    scorer = Scorer(path)
    calibration = Calibration.from_dict(scorer.metadata)
    assert tells_apart(score, label.tolist(), is_ood)
    assert np.array_equal(is_ood, score > np.float32(scorer.metadata["threshold"]))
    assert np.array_equal(is_ood, calibration.rejects(torch.from_numpy(score)).numpy())
    assert scorer.threshold == scorer.metadata["threshold"] == calibration.threshold
    expected = (torch.from_numpy(logits) / calibration.temperature).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert np.array_equal(confidence, probabilities.max(axis=1))
    assert np.array_equal(label, logits.argmax(axis=1))


NODE = """
const ort = require("onnxruntime-node");
const fs = require("fs");
(async () => {
  const [n, h, w] = process.argv[3].split(",").map(Number);
  const pixels = new Uint8Array(fs.readFileSync(process.argv[2]));
  const images = new ort.Tensor("uint8", pixels, [n, h, w, 3]);
  for (const file of process.argv.slice(4)) {
    const session = await ort.InferenceSession.create(file);
    const out = await session.run({images});
    console.log(JSON.stringify({
      label: Array.from(out.label.data, Number), score: Array.from(out.score.data),
      is_ood: Array.from(out.is_ood.data, Boolean), confidence: Array.from(out.confidence.data),
      p_value: Array.from(out.p_value.data), below: Array.from(out.p_value.data, p => p <= 0.05),
    }));
  }
})();
"""


@pytest.fixture(scope="module")
def in_node(tmp_path_factory):
    """What each of some files says of images, in Node.js."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if not (npm and node):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    installed = subprocess.run(
        [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-node"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    if installed.returncode:
        pytest.skip("onnxruntime-node cannot be installed here")
    (folder / "score.js").write_text(NODE)

    def run(images, *files):
        (folder / "pixels.bin").write_bytes(images.tobytes())
        size = ",".join(map(str, images.shape[:3]))
        run = subprocess.run(
            [node, "score.js", "pixels.bin", size, *files],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in run.stdout.splitlines()]

    return run


def test_node_gives_the_same_numbers(exported, in_node):
    _, path = exported
    images = np.stack(list(photographs(20, np.random.default_rng(3), ((50, 70),))))
    (theirs,), ours = in_node(images, path), Scorer(path).run(images)
    assert tells_apart(theirs["score"], theirs["label"], theirs["is_ood"])
    assert theirs["label"] == ours["label"].tolist()
    assert theirs["is_ood"] == ours["is_ood"].tolist()
    np.testing.assert_allclose(theirs["score"], ours["score"], atol=1e-4)
    np.testing.assert_allclose(theirs["confidence"], ours["confidence"], atol=1e-4)
    np.testing.assert_allclose(theirs["p_value"], ours["p_value"], atol=0.05)


def calibrated_on(samples, folder):
    """A file with so many calibration scores, and images of which one has a p-value of 1/20."""
    generator = np.random.default_rng(0)
    images = np.broadcast_to(generator.integers(0, 256, (400, 1, 1, 3)), (400, 8, 8, 3))
    images = images.astype(np.uint8)
    onnx.save(build(), folder / "any.onnx")
    scores = np.unique(Scorer(folder / "any.onnx").run(images)["score"])
    # those of some images, so that p-values jump where these lie
    above = scores[-((samples + 1) // 20) :]
    calibration = [*above[1:], *generator.uniform(0, np.median(scores), samples - len(above) + 1)]
    path = folder / f"{samples}.onnx"
    onnx.save(build(scores=list(map(float, calibration))), path)
    return path, images


@pytest.mark.parametrize("samples", [19, 99, 199, 999])
def test_p_values_at_most_five_percent_are_the_verdict(samples, tmp_path):
    path, images = calibrated_on(samples, tmp_path)
    outputs = onnxruntime.InferenceSession(path).run(["p_value", "is_ood"], {"images": images})
    p_value, is_ood = outputs[0].astype(np.float64), outputs[1]
    assert np.array_equal(p_value <= 0.05, is_ood)
    assert ((p_value > 0.05 - 1e-8) & is_ood).any()
    assert 0 < is_ood.sum() < len(is_ood)
    nearest = np.float32((samples + 1) // 20 / (samples + 1))  # what it would be without care
    assert float(nearest) > 0.05
    calibration = torch.tensor(Scorer(path).metadata["scores"])
    expected = p_values(torch.from_numpy(Scorer(path).run(images)["score"]), calibration)
    assert np.array_equal(outputs[0], expected.numpy())


def test_p_values_at_most_five_percent_are_the_verdict_in_node(in_node, tmp_path):
    paths = [calibrated_on(samples, tmp_path)[0] for samples in (19, 99, 199, 999)]
    images = calibrated_on(19, tmp_path)[1]
    for found in in_node(images, *paths):
        assert found["below"] == found["is_ood"]
        assert any(0.05 - 1e-8 < p <= 0.05 for p in found["p_value"])
        assert 0 < sum(found["is_ood"]) < len(images)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=130),
    st.sampled_from([0.0, 1e-7, 0.3, 1.0, 3.7]),
    st.integers(0, 2**31 - 1),
)
@settings(deadline=None, max_examples=40)
def test_p_values_in_a_graph_are_pythons(calibration, tolerance, seed):
    """Of every number of calibration scores, with ties; and of logits that are no numbers, whose
    score may be the least of all."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(-1, 45, 50).astype(np.float32)
    scores[:10] = np.nextafter(scores[:10], generator.choice([-99, 99], 10).astype(np.float32))
    content = {"scores": sorted(map(float, calibration)), "tolerance": tolerance}
    steps = Steps.of(content)
    alpha = float(generator.choice(steps.values[:-1]))
    whole = verdict(2, "minimum_distance_score", 1.0, alpha, steps, 18, 10)
    part = onnx.utils.Extractor(whole).extract_model(["raw"], ["p_value", "is_ood"])
    session = onnxruntime.InferenceSession(part.SerializeToString())
    found, is_ood = session.run(None, {"raw": np.stack([-scores, -scores], axis=1)})
    known = torch.tensor(calibration, dtype=torch.float32)
    assert np.array_equal(found, p_values(torch.from_numpy(scores), known, tolerance).numpy())
    assert np.array_equal(found, steps.p_values(scores))
    assert np.array_equal(is_ood, found.astype(float) <= alpha)
    threshold = steps.threshold(alpha)
    assert np.array_equal(is_ood, scores > np.float32(threshold))
    bad = np.array([[np.nan, 9], [np.inf, 0], [-np.inf, 0], [9, np.inf]], np.float32)
    found, is_ood = session.run(None, {"raw": bad})
    assert (found == steps.values[0]).all()
    assert is_ood.all()


def test_every_rate_decides_in_the_graph_as_in_python():
    """Of 19 scores all p-values, as float32 and as quotients, and what lies beside them."""
    calibration = [float(place) for place in range(19)]
    steps = Steps.of({"scores": calibration, "tolerance": 0.0})
    scores = np.arange(-1, 20, dtype=np.float32)
    known = Calibration("any", 1.0, 0.5, calibration)
    for rank in range(1, 20):
        single = float(steps.values[rank - 1])
        for alpha, rejected in (
            (rank / 20, rank),
            (single, rank),
            (np.nextafter(single, 1), rank),
            (np.nextafter(single, 0), rank - 1),
        ):
            graph = verdict(2, "minimum_distance_score", 1.0, alpha, steps, 18, 10)
            session = onnxruntime.InferenceSession(graph.SerializeToString())
            raw = np.stack([-scores, -scores - 1], axis=1)
            (is_ood,) = session.run(["is_ood"], {"raw": raw})
            assert is_ood.sum() == rejected
            at = replace(known, alpha=float(alpha))
            assert np.array_equal(at.rejects(torch.from_numpy(scores)).numpy(), is_ood)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": {"mean": (0.3, 0.3, 0.3)}}, "preprocessing disagrees with timm's"),
        ({"config": {"interpolation": "bicubic"}}, "preprocessing disagrees with timm's"),
        ({"network": 1.01}, "disagrees with the model: logits by"),
        ({"temperature": 1.1}, "probabilities do not follow from the logits"),
        ({"alpha": 1.1}, "is_ood do not follow from the logits"),
        ({"alpha": 0.9}, "is_ood do not follow from the logits"),
        ({"tolerance": 1e5}, "p_value, is_ood do not follow from the logits"),
        ({"score": "minimum_distance_score"}, "score do not follow from the logits"),
    ],
)
def test_a_file_that_disagrees_is_not_written(changed, message, exported, tmp_path, monkeypatch):
    folder, _ = exported
    original = exporting.assemble

    def spoiled(network, config, metadata):
        for tensor in network.graph.initializer:
            if "network" in changed and len(tensor.dims) == 4:
                weights = onnx.numpy_helper.to_array(tensor) * np.float32(changed["network"])
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
        metadata["score"] = changed.get("score", metadata["score"])
        for name in ("temperature", "alpha", "tolerance"):
            metadata[name] *= changed.get(name, 1)
        return original(network, config | changed.get("config", {}), metadata)

    monkeypatch.setattr(exporting, "assemble", spoiled)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older file")
    with pytest.raises(ExportError, match=message):
        export(folder, path)
    assert path.read_bytes() == b"an older file"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_resizing_in_the_wrong_order_is_noticed(exported, tmp_path, monkeypatch):
    """As when another Pillow changes it again."""
    other = "12.3.0" if int(PIL.__version__.partition(".")[0]) > 12 else "13.0.0"
    monkeypatch.setattr("PIL.__version__", other)
    with pytest.raises(ExportError, match=r"of an image of 321x131 pixels, \d+\.\d% of the values"):
        export(exported[0], tmp_path / "m.onnx")


def test_what_is_no_valid_onnx_is_said(exported, tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise onnx.checker.ValidationError("Nodes must be topologically sorted\nmore")

    monkeypatch.setattr("onnx.checker.check_model", refuse)
    with pytest.raises(ExportError, match=r"no valid ONNX.*: Nodes must be .* sorted$"):
        export(exported[0], tmp_path / "m.onnx")


def test_a_constant_verdict_is_noticed(exported, tmp_path, monkeypatch):
    original = exporting.assemble

    def accepting_all(*arguments):
        model = original(*arguments)
        node = next(n for n in model.graph.node if list(n.output) == ["is_ood"])
        node.CopyFrom(onnx.helper.make_node("Less", ["p_value", "p_value"], ["is_ood"]))
        return model

    monkeypatch.setattr(exporting, "assemble", accepting_all)
    with pytest.raises(ExportError, match="is_ood do not follow"):
        export(exported[0], tmp_path / "m.onnx")


def test_a_network_larger_than_a_file_is_refused_before_torch_exports_it(
    exported, tmp_path, monkeypatch
):
    monkeypatch.setattr("isomax_adapters.onnx.scorers.LARGEST", 10**6)
    monkeypatch.setattr("torch.onnx.export", None)
    said = (
        r"the network cannot be exported: it holds 0\.00 GB, and a file has at most 0\.00; choose"
    )
    with pytest.raises(ExportError, match=said):
        export(exported[0], tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_what_cannot_be_exported_is_named(tmp_path):
    folder = make_folder(tmp_path / "m", config={"interpolation": "lanczos"})
    with pytest.raises(ValueError, match="'lanczos' has no ONNX counterpart"):
        export(folder, tmp_path / "m.onnx")
    (folder / "calibration.json").unlink()
    with pytest.raises(ValueError, match="not calibrated"):
        export(folder, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
