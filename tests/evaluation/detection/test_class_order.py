"""Which logit is which class, where a model does not say: the images decide, for every command."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from isomax.calibration import Calibration
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import folder_from_checkpoint, load_model, save_calibration, save_model
from isomax_evaluation import compare
from isomax_evaluation.data.listing.listing import in_order
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.deployment.calibrating import calibrate
from isomax_evaluation.deployment.precision import export_and_measure
from isomax_evaluation.detection.class_order import fits, usual_orders
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.progress import LINES

from ...settings import grouped

READING = Reading(workers=0)
CLASSES = ("0", "1", "2", "10", "11", "A3", "a3", "B")
ORDERS = {
    "natural": in_order(CLASSES),
    "text": sorted(CLASSES),
    "case": sorted(CLASSES, key=lambda name: (name.casefold(), name)),
}
GREYS = np.linspace(20, 235, len(CLASSES))


@pytest.fixture(scope="module")
def greys(tmp_path_factory):
    """Each class is a shade of grey; the same pixels of no two images."""
    root = tmp_path_factory.mktemp("greys") / "set"
    return make_greys(root, 24)


def make_greys(root, count, seed=0):
    generator = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = GREYS[number] + generator.normal(0, 2, (24, 24, 3))
            image = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
            image.save(root / name / f"{index:03}.png")
    return root


@functools.cache
def trained(order, root):
    """A network that tells the shades apart, its logits in some order of the classes."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=len(CLASSES)).eval()
    config = timm.data.resolve_model_data_config(model, {"img_size": 32, "crop_pct": 1.0})
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **config}
    files = sorted(root.rglob("*.png"))
    labels = torch.tensor([order.index(file.parent.name) for file in files])
    with torch.no_grad():
        maps = model.forward_features(prepared(model, files))
        features = model.forward_head(maps, pre_logits=True).double()
        ones = torch.cat([features, torch.ones(len(files), 1)], dim=1)
        wanted = nn.functional.one_hot(labels).double()
        found = torch.linalg.lstsq(ones, wanted, driver="gelsd").solution.T
        model.get_classifier().weight.copy_(found[:, :-1])
        model.get_classifier().bias.copy_(found[:, -1])
    return model


def prepared(model, files):
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return torch.stack([transform(Image.open(file)) for file in files])


def right(model, names, root):
    """Of a folder's images the share that a named model has right."""
    files = sorted(root.rglob("*.png"))[::3]
    with torch.no_grad():
        found = model(prepared(model, files)).argmax(dim=1)
    return np.mean([names[at] == file.parent.name for at, file in zip(found, files, strict=True)])


@pytest.fixture(scope="module", params=[*ORDERS])
def checkpoint(request, greys, tmp_path_factory):
    model = trained(tuple(ORDERS[request.param]), greys)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return request.param, f"test_resnet@{path}", model


def test_the_networks_of_these_tests_can_tell_the_classes(checkpoint, greys):
    order, _, model = checkpoint
    assert right(model, ORDERS[order], greys) > 0.8


def test_calibrate_takes_the_order_that_fits(checkpoint, greys, tmp_path, capfd):
    order, source, _ = checkpoint
    folder = calibrate(
        source, str(greys), tmp_path / "m", alpha=0.2, image_size=32, reading=Reading(workers=0)
    )
    model = load_model(folder)
    assert right(model, model.pretrained_cfg["label_names"], greys) > 0.8
    said = capfd.readouterr().err
    told = {"natural": "natural order (", "text": "text order (", "case": "without case ("}
    assert f"no class names; its classes are taken in {'text order ' * (order == 'case')}" in said
    assert told[order] in said.partition("are taken in ")[2].partition(":")[0]


def test_import_invents_no_names_and_calibrate_finds_them(checkpoint, greys, tmp_path):
    _, source, _ = checkpoint
    folder = folder_from_checkpoint(source.partition("@")[2], tmp_path / "m", "test_resnet")
    assert "label_names" not in json.loads((folder / "config.json").read_text())
    calibrate(
        str(folder),
        str(greys),
        tmp_path / "c",
        alpha=0.2,
        image_size=32,
        reading=READING,
    )
    model = load_model(tmp_path / "c")
    assert right(model, model.pretrained_cfg["label_names"], greys) > 0.8


def test_compare_takes_the_order_that_fits(checkpoint, greys, tmp_path):
    _, source, _ = checkpoint
    done = compare(
        id=str(greys), ood=["uniform-noise"], models={"m": source},
        preprocessing=Preprocessing(image_size=32), detectors=["MaxLogit"],
        output=tmp_path / "out", reading=READING,
    )  # fmt: skip
    assert done.results["accuracy"].min() > 0.8
    table = pd.read_csv(tmp_path / "out/runs/m-seed0/predictions.csv", dtype=str)
    known = table[table["set"] == "set"]
    assert (known["predicted"] == known["class"]).mean() > 0.8


def calibrated(model, folder, greys):
    """A folder without names, as a training loop of one's own may leave it."""
    with torch.no_grad():
        logits = model(prepared(model, sorted(greys.rglob("*.png"))[::4]))
    save_model(model, folder)
    save_calibration(Calibration.fit(logits, logits.argmax(dim=1), "energy_score", 0.2), folder)
    return folder


def test_export_takes_the_order_that_fits(greys, tmp_path, capfd):
    folder = calibrated(trained(tuple(ORDERS["text"]), greys), tmp_path / "m", greys)
    make_greys(tmp_path / "fresh", 3, seed=5)
    table = export_and_measure(
        folder, tmp_path / "m.onnx", "fp16", str(greys), [], LINES, reading=READING,
        calibration=str(tmp_path / "fresh"),
    )  # fmt: skip
    assert table["accuracy"].min() > 0.8
    scorer = Scorer(tmp_path / "m.onnx")
    assert scorer.class_names == ORDERS["text"]
    files = sorted(map(str, greys.rglob("*.png")))[::5]
    named = [result.class_name for result in scorer.score(files)]
    expected = [file.split("/")[-2] for file in files]
    assert np.mean(np.array(named) == expected) > 0.8
    assert "its classes are taken in text order (10, 11, 2, ...)" in capfd.readouterr().err


def test_an_order_that_nobody_uses_is_refused_and_class_names_are_the_way_out(greys, tmp_path):
    order = (*CLASSES[3:], *CLASSES[:3])
    folder = save_model(trained(order, greys), tmp_path / "m")
    given = {"alpha": 0.2, "image_size": 32, "reading": READING}
    message = "no usual order of the classes clearly fits: of .*--class-names FILE"
    with pytest.raises(InputError, match=message):
        calibrate(str(folder), str(greys), tmp_path / "c", **given)
    assert not (tmp_path / "c").exists()
    compared = {"id": str(greys), "ood": "uniform-noise", "models": {"m": folder}, "workers": 0,
                "detectors": "MaxLogit", "output": tmp_path / "out", "image_size": 32}  # fmt: skip
    with pytest.raises(InputError, match=message):
        compare(**grouped(compared))
    with pytest.raises(InputError, match="7 class names for 8 classes"):
        calibrate(str(folder), str(greys), tmp_path / "c", class_names=order[1:], **given)
    calibrate(str(folder), str(greys), tmp_path / "c", class_names=order, **given)
    model = load_model(tmp_path / "c")
    assert right(model, model.pretrained_cfg["label_names"], greys) > 0.8
    assert compare(**grouped(compared), class_names=order).results["accuracy"].min() > 0.8


def test_the_commands_take_a_file_of_class_names(greys, isomax, tmp_path):
    model = trained(tuple(ORDERS["text"]), greys)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(ORDERS["text"]) + "\n")
    names = ("--class-names", tmp_path / "names.txt")
    architecture = ("--model", "test_resnet")
    run = isomax("import", tmp_path / "weights.safetensors", tmp_path / "unnamed", *architecture)
    assert run.returncode == 0, run.stderr
    assert "its class names are not known" in run.stderr
    run = isomax("import", tmp_path / "weights.safetensors", tmp_path / "m", *architecture, *names)
    assert "class names" not in run.stderr
    assert load_model(tmp_path / "m").pretrained_cfg["label_names"] == ORDERS["text"]
    (tmp_path / "names.txt").write_text("\n".join(ORDERS["text"][1:]))
    for command in (
        ("calibrate", tmp_path / "unnamed", "--id", greys, "--output", tmp_path / "c"),
        ("compare", "--models", tmp_path / "unnamed", "--id", greys, "--ood", "uniform-noise",
         "--no-track", "--output", tmp_path / "out"),
        ("export", calibrated(model, tmp_path / "n", greys), tmp_path / "m.onnx"),
    ):  # fmt: skip
        run = isomax(*command, *names)
        assert run.returncode == 2
        assert "7 class names for 8 classes" in run.stderr


@given(st.sets(st.text(max_size=4), min_size=1, max_size=12))
def test_orders_hold_the_same_names_and_none_is_there_twice(names):
    orders = usual_orders(sorted(names))
    assert all(set(order) == names for order in orders.values())
    assert len(set(map(tuple, orders.values()))) == len(orders)


@given(st.integers(3, 12), st.floats(0.5, 1.0), st.integers(0, 2**32 - 1))
def test_an_order_is_taken_only_if_it_is_that_of_the_labels(classes, accuracy, seed):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 30)
    wrong = generator.integers(0, classes, len(labels))
    order = np.roll(np.arange(classes), 1)
    sure = generator.random(len(labels)) < accuracy

    def decided(places, others):
        predicted = np.where(sure, places[labels], wrong)
        right = {str(at): predicted == other[labels] for at, other in enumerate(others)}
        return fits(right, predicted, labels, classes)

    assert decided(order, [order, np.arange(classes)])
    # another one that shares some places with a usual one
    mixed = order.copy()
    mixed[: classes * 2 // 3 + 1] = np.roll(mixed[: classes * 2 // 3 + 1], 1)
    assert not decided(mixed, [order, np.arange(classes)])
