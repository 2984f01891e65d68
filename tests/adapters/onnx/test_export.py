"""The exported file against timm's transform and the PyTorch model."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image

from isomax.calibration import Calibration
from isomax_adapters.onnx import export
from isomax_adapters.onnx.exporting import ExportError
from isomax_adapters.onnx.runtime import Scorer
from isomax_adapters.timm import load_calibration, load_model, save_model

CLASSES = 6


def photographs(count, generator, sizes=((60, 90), (90, 60), (64, 64), (33, 47))):
    """Smooth shapes and grain, in several sizes."""
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=int)
        grain = generator.integers(-10, 11, image.shape)
        yield np.clip(image + grain, 0, 255).astype(np.uint8)


def make_folder(folder, name="isomax_test_resnet", config=None, seed=0):
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=CLASSES).eval()
    for module in model.modules():
        if hasattr(module, "prototypes"):  # as after some training: apart from each other
            torch.nn.init.normal_(module.prototypes, std=0.3)
    size = (config or {}).get("input_size", (3, 64, 64))
    with torch.no_grad():
        logits = model(torch.randn(80, *size))
    head = getattr(model.get_classifier(), "score", "entropic_score")
    calibration = Calibration.fit(logits, logits.argmax(dim=1), head)
    names = [f"class {label}" for label in range(CLASSES)]
    return save_model(model, folder, names, {"input_size": size, **(config or {})}, calibration)


def compare(folder, path, images, tolerance=1e-3):
    """Labels, scores and verdicts of the Scorer and of PyTorch, image by image."""
    model, calibration = load_model(folder), load_calibration(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        logits = torch.cat([model(transform(Image.fromarray(i))[None]) for i in images])
    scores = calibration.score_of(logits).numpy()
    results = Scorer(path).score(images)
    found = np.array([r.score for r in results])
    assert [r.label for r in results] == logits.argmax(dim=1).tolist()
    np.testing.assert_allclose(found, scores, rtol=0, atol=tolerance)
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
    ]
    metadata = json.loads({p.key: p.value for p in model.metadata_props}["isomax"])
    calibration = load_calibration(folder)
    assert metadata["class_names"][2] == "class 2"
    assert metadata["threshold"] == calibration.threshold
    assert metadata["curve"] == [list(point) for point in calibration.curve]
    assert metadata["preprocessing"]["input_size"] == [3, 64, 64]
    assert metadata["provenance"]["architecture"] == "isomax_test_resnet"


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
    folder = make_folder(tmp_path / "m", name)
    path = export(folder, tmp_path / "m.onnx")
    images = list(photographs(12, np.random.default_rng(1)))
    assert compare(folder, path, images) == 12


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "size"),
    [
        ("center", 0.875, (64, 64)),
        ("center", 1.0, (64, 64)),
        ("center", 0.9, (48, 80)),
        ("squash", 0.95, (64, 64)),
        ("border", 1.0, (64, 48)),
    ],
)
def test_preprocessing_is_timms(interpolation, crop_mode, crop_pct, size, tmp_path):
    config = {
        "input_size": (3, *size),
        "interpolation": interpolation,
        "crop_mode": crop_mode,
        "crop_pct": crop_pct,
    }
    import onnxruntime

    from isomax_adapters.onnx.graph import preprocessing

    config |= {"mean": (0.48, 0.45, 0.4), "std": (0.22, 0.23, 0.24)}
    session = onnxruntime.InferenceSession(preprocessing(config, 18, 10).SerializeToString())
    transform = timm.data.create_transform(**config)
    differing = []
    for image in photographs(
        24, np.random.default_rng(2), ((60, 90), (91, 47), (200, 133), (64, 64))
    ):
        (ours,) = session.run(None, {"images": image[None]})
        theirs = transform(Image.fromarray(image)).numpy()
        assert ours.shape[1:] == theirs.shape
        # in grey levels: one of 255, divided by the standard deviation
        levels = np.abs(ours[0] - theirs) * 255 * np.array([0.22, 0.23, 0.24])[:, None, None]
        differing.append(levels.round().astype(int))
    differing = np.concatenate([d.ravel() for d in differing])
    # ONNX Runtime and Pillow now and then round a sum of weights to another grey level
    assert differing.max() <= 2
    assert (differing > 0).mean() <= 0.12


def test_real_photographs_and_small_images(tmp_path):
    """60 full-size photographs and 500 small ones, from the file on disk to the score."""
    root = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not (root / "unpack").is_file():
        pytest.skip(f"the real images are not at {root}")
    subprocess.run([root / "unpack", tmp_path / "data"], check=True, capture_output=True)
    photos = sorted((tmp_path / "data/photos").rglob("*.JPEG"))
    small = sorted((tmp_path / "data/cifar10/test").rglob("*.jpg"))[::20]
    assert (len(photos), len(small)) == (60, 500)
    folder = make_folder(tmp_path / "m", config={"input_size": (3, 160, 160), "crop_pct": 0.95})
    path = export(folder, tmp_path / "m.onnx")
    model = load_model(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    calibration = load_calibration(folder)
    results = Scorer(path).score([*photos, *small])
    assert not any(result.error for result in results)
    with torch.no_grad():
        tensors = torch.stack([transform(Image.open(p).convert("RGB")) for p in [*photos, *small]])
        logits = torch.cat([model(part) for part in tensors.split(40)])
    scores = calibration.score_of(logits).numpy()
    found = np.array([result.score for result in results])
    assert [result.label for result in results] == logits.argmax(dim=1).tolist()
    np.testing.assert_allclose(found, scores, rtol=0, atol=1e-3)
    sure = np.abs(scores - calibration.threshold) > 1e-3
    verdicts = np.array([result.is_ood for result in results])
    assert (verdicts == (scores > calibration.threshold))[sure].all()


NODE = """
const ort = require("onnxruntime-node");
const fs = require("fs");
(async () => {
  const session = await ort.InferenceSession.create(process.argv[2]);
  const [n, h, w] = process.argv[4].split(",").map(Number);
  const pixels = new Uint8Array(fs.readFileSync(process.argv[3]));
  const out = await session.run({images: new ort.Tensor("uint8", pixels, [n, h, w, 3])});
  console.log(JSON.stringify({
    label: Array.from(out.label.data, Number), score: Array.from(out.score.data),
    is_ood: Array.from(out.is_ood.data, Boolean), confidence: Array.from(out.confidence.data),
  }));
})();
"""


def test_node_gives_the_same_numbers(exported, tmp_path):
    _, path = exported
    npm, node = shutil.which("npm"), shutil.which("node")
    if not (npm and node):
        pytest.skip("node and npm are not installed")
    installed = subprocess.run(
        [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-node"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    if installed.returncode:
        pytest.skip("onnxruntime-node cannot be installed here")
    images = np.stack(list(photographs(5, np.random.default_rng(3), ((50, 70),))))
    (tmp_path / "pixels.bin").write_bytes(images.tobytes())
    (tmp_path / "score.js").write_text(NODE)
    run = subprocess.run(
        [node, "score.js", path, "pixels.bin", "5,50,70"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs, ours = json.loads(run.stdout), Scorer(path).run(images)
    assert theirs["label"] == ours["label"].tolist()
    assert theirs["is_ood"] == ours["is_ood"].tolist()
    np.testing.assert_allclose(theirs["score"], ours["score"], atol=1e-4)
    np.testing.assert_allclose(theirs["confidence"], ours["confidence"], atol=1e-4)


def test_a_file_that_disagrees_is_not_written(exported, tmp_path, monkeypatch):
    folder, _ = exported
    from isomax_adapters.onnx import exporting

    original = exporting.assemble

    def spoiled(network, config, *rest):
        return original(network, config | {"mean": (0.3, 0.3, 0.3)}, *rest)

    monkeypatch.setattr(exporting, "assemble", spoiled)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older file")
    with pytest.raises(ExportError, match="disagrees with the model"):
        export(folder, path)
    assert path.read_bytes() == b"an older file"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_what_cannot_be_exported_is_named(tmp_path):
    folder = make_folder(tmp_path / "m", config={"interpolation": "lanczos"})
    with pytest.raises(ValueError, match="'lanczos' has no ONNX counterpart"):
        export(folder, tmp_path / "m.onnx")
    (folder / "calibration.json").unlink()
    with pytest.raises(ValueError, match="not calibrated"):
        export(folder, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
