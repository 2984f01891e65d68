"""Channels, grey values, crops and sizes, from the command to the exported file."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from safetensors.torch import load_file

from isomax_adapters.onnx import export
from isomax_adapters.runtime.decoding import Decoding, open_image
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import load_model
from isomax_evaluation import compare, train
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import RECIPES

from ...settings import grouped

SHORT = replace(RECIPES["digits"], epochs=2, batch_size=16)


def waves(root, save, classes=("ash", "birch", "cedar"), count=24, size=(24, 24), seed=0):
    """Pictures of 12 bits, of waves that are longer from class to class."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for number, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(count):
            wave = np.sin((columns + index) / (1 + number)) * np.cos(rows / (1 + number))
            picture = 2000 + 1500 * wave + generator.normal(0, 150, size)
            save(picture.clip(0, 4095).astype(np.uint16), folder / f"{index:02}.png")
    return root


def as_12_bits(stored, path):
    Image.fromarray(stored).save(path)


def as_8_bits(stored, path):
    Image.fromarray((stored >> 4).astype(np.uint8)).save(path)


def as_inverted_fourth_band(stored, path):
    colours = [np.full_like(stored, 90, np.uint8)] * 3
    band = 255 - (stored >> 4).astype(np.uint8)
    Image.fromarray(np.stack([*colours, band], axis=-1)).save(path)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return waves(tmp_path_factory.mktemp("deep") / "waves", as_12_bits)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    return waves(tmp_path_factory.mktemp("shallow") / "waves", as_8_bits)


@pytest.fixture(scope="module")
def banded(tmp_path_factory):
    return waves(tmp_path_factory.mktemp("banded") / "waves", as_inverted_fourth_band)


def trained(data, output, recipe=SHORT, **arguments):
    given = {"model": "test_resnet", "image_size": 32, "alpha": 0.2, "workers": 0}
    return train(str(data), output, recipe=recipe, **grouped(given | arguments))


def scores_of(folder, images, path):
    scorer = Scorer(export(folder, path))
    return scorer, scorer.score([str(file) for file in sorted(images.rglob("*.png"))])


def test_12_bits_in_16_train_and_score_as_the_same_pictures_in_8(deep, shallow, tmp_path, capfd):
    folder = trained(deep, tmp_path / "deep", in_chans=1, grey_range=(0, 4095))
    assert "levels are left" not in capfd.readouterr().err
    expected = trained(shallow, tmp_path / "shallow", in_chans=1)
    files = [made / "model.safetensors" for made in (folder, expected)]
    assert files[0].read_bytes() == files[1].read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["grey_range"] == [0, 4095]
    assert config["pretrained_cfg"]["input_size"] == [1, 32, 32]
    scorer, found = scores_of(folder, deep, tmp_path / "deep.onnx")
    assert scorer.decoding == Decoding(1, (0, 4095))
    _, other = scores_of(expected, shallow, tmp_path / "shallow.onnx")
    assert [(r.label, r.score) for r in found] == [(r.label, r.score) for r in other]
    assert not any(r.error for r in found)


def test_photographs_train_and_score_upright_as_the_same_ones_turned(tmp_path, capfd):
    def aside(stored, path):
        exif = Image.Exif()
        exif[274] = 6  # a quarter clockwise, to be seen as it was
        Image.fromarray(np.rot90(stored >> 4).astype(np.uint8)).save(path, exif=exif)

    tall = {"size": (32, 24), "classes": ("ash", "birch")}
    photographs = waves(tmp_path / "turned/waves", aside, **tall)
    pictures = waves(tmp_path / "plain/waves", as_8_bits, **tall)
    folder = trained(photographs, tmp_path / "upright", orientation="upright")
    assert "turned by viewers" not in capfd.readouterr().err
    expected = trained(pictures, tmp_path / "expected")
    assert "turned by viewers" not in capfd.readouterr().err
    files = [made / "model.safetensors" for made in (folder, expected)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads((folder / "config.json").read_text())["orientation"] == "upright"
    scorer, found = scores_of(folder, photographs, tmp_path / "upright.onnx")
    assert scorer.metadata["preprocessing"]["orientation"] == "upright"
    _, other = scores_of(expected, pictures, tmp_path / "expected.onnx")
    assert [(r.label, r.score) for r in found] == [(r.label, r.score) for r in other]
    trained(photographs, tmp_path / "look", check=True)
    assert "images are turned by viewers, as EXIF says" in capfd.readouterr().err.replace("\n", " ")


def test_without_a_range_it_is_warned_of_with_the_way_out(deep, tmp_path, capfd):
    trained(deep, tmp_path / "out", recipe=replace(SHORT, epochs=1))
    said = capfd.readouterr().err
    assert re.search("1[56] of 256 levels are left of them; give the grey range", said)
    assert "or 0,4095 if they have 12 bits" in said


def test_the_range_of_the_training_images_is_kept(deep, tmp_path):
    folder = trained(deep, tmp_path / "out", grey_range="auto", recipe=replace(SHORT, epochs=1))
    values = [np.asarray(Image.open(file)) for file in deep.rglob("*.png")]
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    low, high = settings["grey_range"]
    assert min(v.min() for v in values) <= low < 300
    assert 3700 < high <= max(v.max() for v in values)
    assert json.loads((folder / "config.json").read_text())["grey_range"] == [low, high]
    assert trained(deep, tmp_path / "out", grey_range="auto", recipe=replace(SHORT, epochs=1))


@pytest.mark.parametrize("recipe", [SHORT, replace(SHORT, in_memory=True)])
def test_a_fourth_band_is_seen_by_four_channels_alone(banded, tmp_path, recipe):
    """All that differs between the classes is in the alpha channel."""
    recipe = replace(recipe, epochs=16)
    folder = trained(banded, tmp_path / "four", in_chans=4, recipe=recipe)
    assert json.loads((tmp_path / "four/summary.json").read_text())["test_accuracy"] > 0.8
    scorer, found = scores_of(folder, banded, tmp_path / "four.onnx")
    assert scorer.session.get_inputs()[0].shape[3] == 4
    model = load_model(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    files = sorted(banded.rglob("*.png"))
    pixels = torch.stack([transform(Decoding(4)(open_image(file))) for file in files])
    with torch.no_grad():
        logits = model(pixels)
    assert [r.label for r in found] == logits.argmax(dim=1).tolist()


def test_what_matters_at_the_border_is_cropped_away_or_kept(tmp_path):
    """Two classes that differ in the outermost columns of wide pictures."""
    for name, level in (("dark", 0), ("light", 255)):
        (tmp_path / "wide" / name).mkdir(parents=True)
        generator = np.random.default_rng(0)
        for index in range(30):
            pixels = generator.integers(0, 256, (24, 72, 3)).astype(np.uint8)
            pixels[:, :10] = level
            Image.fromarray(pixels).save(tmp_path / "wide" / name / f"{name}{index}.png")
    accuracy = {}
    for crop_mode in ("center", "squash", "border"):
        recipe = replace(SHORT, epochs=30, augment="none")
        folder = trained(
            tmp_path / "wide", tmp_path / crop_mode, recipe=recipe, crop_mode=crop_mode
        )
        summary = json.loads((tmp_path / crop_mode / "summary.json").read_text())
        accuracy[crop_mode] = summary["test_accuracy"]
        config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        assert config["crop_mode"] == crop_mode
        scorer, _ = scores_of(folder, tmp_path / "wide", tmp_path / f"{crop_mode}.onnx")
        assert scorer.metadata["preprocessing"]["crop_mode"] == crop_mode
    assert accuracy["squash"] == accuracy["border"] == 1.0
    assert accuracy["center"] < 0.9


def test_sizes_need_not_be_square(shallow, tmp_path):
    folder = trained(
        shallow, tmp_path / "out", image_size=(24, 40), crop_pct=0.8, interpolation="bicubic",
        recipe=replace(SHORT, augment="pad-crop", epochs=1),
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert config["input_size"] == [3, 24, 40]
    assert (config["crop_pct"], config["interpolation"]) == (0.8, "bicubic")
    _, found = scores_of(folder, shallow, tmp_path / "out.onnx")
    assert not any(r.error for r in found)
    # one number is height and width
    trained(shallow, tmp_path / "square", image_size=(32, 32), recipe=replace(SHORT, epochs=1))
    trained(shallow, tmp_path / "square", image_size=32, recipe=replace(SHORT, epochs=1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"in_chans": 2}, "in_chans is 2; expected 1, 3 or 4"),
        ({"crop_mode": "top"}, "crop_mode is 'top'; expected center, squash or border"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'; expected"),
        ({"crop_pct": 1.5}, r"crop_pct is 1.5; expected a number in \(0, 1\]"),
        ({"image_size": (32, 0)}, "image_size is 0; expected a number in"),
        ({"grey_range": (9, 9)}, r"grey range \(9, 9\); expected the smallest and the largest"),
        ({"grey_range": "auto"}, "no grey range to find"),
        (
            {"in_chans": 1, "recipe": replace(RECIPES["macedo2022"], epochs=1)},
            "expected one or 1 of each",
        ),
        (
            {"in_chans": 4, "recipe": replace(SHORT, auto_augment="rand-m9")},
            "auto_augment works on grey and RGB",
        ),
        ({"model": "test_vit", "image_size": (32, 33)}, "with test_vit fails|divisible"),
    ],
)
def test_what_images_cannot_be_made_into_is_refused_before_work(given, message, shallow, tmp_path):
    with pytest.raises(InputError, match=message):
        trained(shallow, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_weights_of_three_channels_serve_one(shallow, tmp_path):
    coloured = trained(shallow, tmp_path / "three", recipe=replace(SHORT, epochs=1))
    grey = trained(
        shallow, tmp_path / "one", in_chans=1, weights=str(coloured / "model.safetensors"),
        recipe=replace(SHORT, epochs=0, head_first=1),
    )  # fmt: skip
    before, after = (load_file(made / "model.safetensors") for made in (coloured, grey))
    summed = before["conv1.0.weight"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(after["conv1.0.weight"], summed)


def test_a_comparison_reads_images_as_each_of_its_models_does(deep, shallow, tmp_path):
    """A given model with a range and a channel of its own, beside one that is trained in colour."""
    given = trained(deep, tmp_path / "grey", in_chans=1, grey_range=(0, 4095))
    other = waves(tmp_path / "other", as_12_bits, seed=1)
    done = compare(
        id=str(deep),
        ood={"other": str(other)},
        models={"grey": given},
        losses=["softmax"],
        seeds=1,
        detectors=["MaxSoftmax", "Mahalanobis", "ODIN"],
        model="test_resnet",
        recipe=SHORT,
        alpha=0.2,
        output=tmp_path / "out",
        preprocessing=Preprocessing(image_size=32, crop_mode="squash"),
        reading=Reading(workers=0),
    )
    assert not len(done.errors)
    summary = json.loads((tmp_path / "grey/summary.json").read_text())
    mine = done.classes[done.classes["loss"] == "grey"].set_index("class")
    for name, expected in summary["classes"].items():
        assert mine.loc[name, "recall"] == pytest.approx(expected["recall"])
        assert mine.loc[name, "false_alarm_rate"] == pytest.approx(expected["false_alarm_rate"])
    assert set(done.classes["loss"]) == {"grey", "softmax"}
    report = (done.output / "report.html").read_text()
    assert "how often it is recognised, and rejected" in report
    settings = json.loads((done.output / "settings.json").read_text())
    assert settings["crop_mode"] == "squash"
    # again, of fewer detectors
    again = compare(
        id=str(deep),
        ood={"other": str(other)},
        models={"grey": given},
        losses=["softmax"],
        seeds=1,
        detectors=["MaxSoftmax"],
        model="test_resnet",
        recipe=SHORT,
        alpha=0.2,
        output=tmp_path / "out",
        preprocessing=Preprocessing(image_size=32, crop_mode="squash"),
        reading=Reading(workers=0),
    )
    asked = done.results[done.results["detector"] == "MaxSoftmax"]
    assert again.results.equals(asked.reset_index(drop=True))
