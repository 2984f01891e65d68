"""Models that exist stand in the table beside those that are trained."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from pytorch_ood.model import WideResNet
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from isomax_adapters.pytorch_ood import Parts
from isomax_adapters.timm import load_calibration, load_model, save_model
from isomax_evaluation import compare
from isomax_evaluation.comparison.columns import FILES
from isomax_evaluation.comparison.given import given_models
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import RECIPES

from ...image_folders import make_folder
from ...settings import grouped
from .scores import read_scores

SHORT = replace(RECIPES["digits"], epochs=1)


@pytest.fixture
def stem_passes():
    """How many images go through the first layer of any network."""
    counted = []

    def count(module, args, output):
        stem = isinstance(module, nn.Conv2d) and module.in_channels == 3
        if stem and not torch.compiler.is_compiling():  # the export traces it
            counted.append(len(output))

    handle = nn.modules.module.register_module_forward_hook(count)
    yield counted
    handle.remove()


def test_a_given_model_scores_as_it_did_when_it_was_trained(compared, tmp_path):
    trained = compared.output / "runs"
    done = compare(
        models=[
            f"again={trained / 'isomax-seed0'}",  # holds model/, as isomax train's output does
            f"again={trained / 'isomax-seed1' / 'model'}",
            str(trained / "softmax-seed0"),
        ],
        detectors=["EntropicScore", "MaxLogit", "MaxSoftmax"],
        output=tmp_path / "out",
    )
    assert set(done.results["loss"]) == {"again", "softmax-seed0"}
    assert set(done.results.query("loss == 'again'")["seed"]) == {0, 1}
    same = ["seed", "detector", "ood"]
    columns = [*same, "accuracy", "ECE", "AUROC", "FPR95TPR"]
    before = compared.results.query("loss == 'isomax'")[columns]
    merged = done.results.query("loss == 'again'")[columns].merge(before, on=same)
    assert len(merged) == 3 * 2 * 2 - 0
    for name in ("accuracy", "AUROC", "FPR95TPR"):
        np.testing.assert_allclose(merged[f"{name}_x"], merged[f"{name}_y"], atol=1e-6)
    np.testing.assert_allclose(merged["ECE_x"], merged["ECE_y"], atol=1e-4)
    # the verdicts are those of the model's own threshold
    table = pd.read_csv(tmp_path / "out/runs/again-seed0/predictions.csv")
    calibration = json.loads((trained / "isomax-seed0/model/calibration.json").read_text())
    assert (table["is_ood"] == (table["score"] > calibration["threshold"])).all()
    scores = read_scores(tmp_path / "out/runs/again-seed0", "uniform-noise")["EntropicScore"]
    found = table.loc[table["set"] == "uniform-noise", "score"]
    np.testing.assert_allclose(found, scores, atol=1e-6)
    assert done.onnx is not None


def test_every_column_of_every_table_is_documented(compared):
    folder = compared.output / "runs" / "isomax-seed0"
    guide = (compared.output / "README.md").read_text()
    for name, columns in FILES.items():
        assert (f"## {name}" in guide) == ("tuning" not in name)
        path = compared.output / name
        if "MODEL" in name:
            path = folder / name.partition("/")[2].partition("/")[2]
        if path.stem == "tuning":  # of a comparison that tunes
            assert not path.exists()
            continue
        if path.stem == "SET":
            for table in (folder / "scores").glob("*.csv"):
                assert list(pd.read_csv(table).columns)[:2] == ["path", "class"]
            continue
        assert list(pd.read_csv(path).columns) == list(columns), name
    named = {name.partition("/")[0] for name in re.findall(r"^(?:- `|## )([^`\n]+)", guide, re.M)}
    there = {path.name for path in compared.output.iterdir() if not path.name.startswith(".")}
    beside = {"README.md", "model.json", "chosen", "chosen.json"}  # named in the lines of others
    beside |= {"isomax.onnx", "softmax.onnx"}  # of other tests
    assert named == there - beside


def test_trained_losses_and_given_models_stand_in_one_table(compared, tmp_path):
    done = compare(
        models={"given": compared.output / "runs/isomax-seed0"},
        losses=["softmax"],
        seeds=1,
        recipe=SHORT,
        detectors=["MaxLogit"],
        output=tmp_path / "out",
    )
    assert set(done.results["loss"]) == {"softmax", "given"}
    assert "model" in (tmp_path / "out/report.html").read_text()


def test_the_table_is_what_is_asked_for_made_of_what_is_kept(
    compared, tmp_path, stem_passes, monkeypatch
):
    model = compared.output / "runs/isomax-seed0"
    output = tmp_path / "out"

    def call(**arguments):
        stem_passes.clear()
        with monkeypatch.context() as patched:
            # what costs are measured with, and a file is verified with, are passes too
            results = "isomax_evaluation.detection.testing.results"
            patched.setattr(f"{results}.measure_costs", lambda *given: {})
            nothing = "isomax_evaluation.comparison.deploying.export"
            patched.setattr(nothing, lambda *given: None)
            done = compare(models={"m": model}, output=output, **grouped(arguments))
        return done, sum(count for count in stem_passes if count > 1)  # one tells shapes

    first, passes = call(detectors=["MaxLogit", "KNN"], ood=["uniform-noise"])
    # one pass over training, test and OOD images
    assert passes == sum(
        json.loads((output / "settings.json").read_text())["images"][name]
        for name in ("digits", "id test", "uniform-noise")
    )
    second, passes = call(detectors=["KLMatching", "ReAct-maps"], ood=["uniform-noise"])
    assert passes > 0  # of the detector of feature maps
    assert list(second.results["detector"].unique()) == ["KLMatching", "ReAct-maps"]
    assert json.loads((output / "settings.json").read_text())["detectors"] == [
        "KLMatching",
        "ReAct-maps",
    ]
    third, passes = call(detectors=["MaxLogit"], ood=["uniform-noise", "digits-held-out"])
    count = len(pd.read_csv(output / "runs/m-seed0/scores/digits-held-out.csv"))
    assert passes == count
    assert set(third.results["ood"]) == {"uniform-noise", "digits-held-out"}
    assert set(third.results["detector"]) == {"MaxLogit"}

    # again, and as it was asked for at first: nothing is fitted or scored
    def never(*given):
        raise AssertionError("computed again")

    for place in ("fit", "score", "cost_of_detectors", "ood_metrics"):
        monkeypatch.setattr(f"isomax_evaluation.detection.testing.results.{place}", never)
    again, passes = call(detectors=["MaxLogit"], ood=["uniform-noise", "digits-held-out"])
    assert passes == 0
    pd.testing.assert_frame_equal(again.results, third.results)
    at_first, passes = call(detectors=["MaxLogit", "KNN"], ood=["uniform-noise"])
    assert passes == 0
    pd.testing.assert_frame_equal(at_first.results, first.results)
    pd.testing.assert_frame_equal(at_first.intervals, first.intervals)
    folder = output / "runs/m-seed0"
    assert list(pd.read_csv(folder / "scores/digits.csv"))[2:] == ["MaxLogit", "KNN"]
    assert not (folder / "scores/digits-held-out.csv").exists()  # is not asked for
    # each piece alone, out of what was kept, is as if all had been asked for at once
    whole, _ = call(
        detectors=["MaxLogit", "KNN", "KLMatching", "ReAct-maps"], ood=["uniform-noise"]
    )
    parts = pd.concat([first.results, second.results], ignore_index=True)
    pd.testing.assert_frame_equal(whole.results, parts)


def test_a_detector_that_draws_scores_alike_whenever_it_is_added(compared, tmp_path):
    model = {"m": compared.output / "runs/softmax-seed0"}
    arguments = {"models": model, "ood": ["uniform-noise"], "fit_images": 30}
    compare(output=tmp_path / "a", detectors=["Gram", "MaxLogit"], **arguments)
    compare(output=tmp_path / "b", detectors=["MaxLogit"], **arguments)
    compare(output=tmp_path / "b", detectors=["MaxLogit", "Gram"], **arguments)
    scores = [read_scores(tmp_path / name / "runs/m-seed0", "digits")["Gram"] for name in "ab"]
    np.testing.assert_array_equal(*scores)


def test_weights_that_changed_since_are_scored_anew(compared, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(compared.output / "runs/isomax-seed0/model", folder)
    arguments = {"models": {"m": folder}, "detectors": ["MaxLogit"], "output": tmp_path / "out"}
    before = compare(**grouped(arguments))
    model = load_model(folder)
    with torch.no_grad():
        model.get_classifier().prototypes[0] += 1
    save_model(model, folder, list("0123456"), calibration=load_calibration(folder))
    after = compare(**grouped(arguments))
    assert (after.results["AUROC"] != before.results["AUROC"]).any()
    fresh = compare(**grouped(arguments | {"output": tmp_path / "fresh"}))
    pd.testing.assert_frame_equal(after.results, fresh.results)


def test_images_that_changed_since_are_scored_anew(compared, tmp_path):
    make_folder(tmp_path / "odd", ("x",), 5)
    arguments = {
        "models": {"m": compared.output / "runs/isomax-seed0"},
        "detectors": ["MaxLogit"],
        "output": tmp_path / "out",
        "ood": [f"strange={tmp_path / 'odd'}"],
    }
    done = compare(**grouped(arguments))
    assert set(done.results["ood"]) == {"strange"}
    shutil.rmtree(tmp_path / "odd")
    make_folder(tmp_path / "odd", ("x",), 7, seed=3)
    again = compare(**grouped(arguments))
    assert len(read_scores(tmp_path / "out/runs/m-seed0", "strange")["MaxLogit"]) == 7
    fresh = compare(**grouped(arguments | {"output": tmp_path / "fresh"}))
    pd.testing.assert_frame_equal(again.results, fresh.results)


def test_a_folder_that_holds_a_training_is_left_alone(compared, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(compared.output / "runs/isomax-seed0", run)
    settings = (run / "settings.json").read_bytes()
    arguments = {"models": {"m": run}, "detectors": ["MaxLogit"], "ood": ["uniform-noise"]}
    with pytest.raises(InputError, match=r"run holds another run .* another output folder"):
        compare(**arguments, output=run)
    # a given model of the name of one that was trained there
    output = tmp_path / "out"
    shutil.copytree(run, output / "runs/m-seed0")
    (output / "settings.json").write_text('{"losses": ["m"]}')
    with pytest.raises(InputError, match="m-seed0 holds another run"):
        compare(**arguments, output=output)
    assert (output / "runs/m-seed0/settings.json").read_bytes() == settings
    assert (output / "settings.json").read_text() == '{"losses": ["m"]}'


# -- Classes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet_model(tmp_path_factory):
    """1,000 classes without names of its own, as timm's pretrained models have."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("imagenet") / "model"
    return save_model(timm.create_model("test_resnet", num_classes=1000), folder)


def folders_of(root, names):
    make_folder(root / "train", names, 8)
    make_folder(root / "test", names, 4, seed=1)
    return str(root)


@pytest.mark.parametrize(
    "names", [("n01443537", "n01440764"), ("Goldfish", "tench"), ("Tinca_tinca", "goldfish")]
)
def test_classes_are_matched_by_synset_or_word_and_the_others_dropped(
    names, imagenet_model, tmp_path
):
    done = compare(
        id=folders_of(tmp_path / "id", names),
        ood=["uniform-noise"],
        models={"m": imagenet_model},
        detectors=["MaxLogit", "ViM", "DICE", "fDBD"],
        output=tmp_path / "out",
        preprocessing=Preprocessing(image_size=32),
    )
    folder = tmp_path / "out/runs/m-seed0"
    assert not done.results["AUROC"].isna().any()
    network = load_model(imagenet_model)
    size = {"img_size": 32, "crop_pct": 1.0}
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network, size))
    from isomax_evaluation import data

    test = data.open_splits(str(tmp_path / "id")).test
    with torch.no_grad():
        logits = network(torch.stack([transform(test.image(i)) for i in range(len(test))]))
    place = {"tench": 0, "Tinca_tinca": 0, "n01440764": 0}
    chosen = logits[:, [place.get(name, 1) for name in test.class_names]]
    expected = -chosen.max(dim=1).values
    np.testing.assert_allclose(read_scores(folder, "id")["MaxLogit"], expected, atol=1e-5)
    table = pd.read_csv(folder / "predictions.csv")
    known = table[table["set"] == "id"]
    named = [test.class_names[label] for label in chosen.argmax(dim=1).tolist()]
    assert known["predicted"].to_list() == named
    assert table["is_ood"].isna().all()  # it has no threshold
    assert done.onnx is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("tench", "unicorn", "griffin"), r"does not know 2 of the 3 ID classes: griffin, unicorn"),
        (("tench", "crane"), "crane could be more than one class"),
        (("tench", "Tinca tinca"), "are one class"),
    ],
)
def test_classes_that_do_not_fit_are_one_line_before_any_work(
    names, message, imagenet_model, tmp_path
):
    with pytest.raises(InputError, match=message) as error:
        compare(
            id=folders_of(tmp_path / "id", names),
            ood=["uniform-noise"],
            models={"m": imagenet_model},
            detectors=["MaxLogit"],
            output=tmp_path / "out",
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_classes_without_names_are_matched_by_number(tmp_path):
    folder = save_model(timm.create_model("test_resnet", num_classes=3), tmp_path / "model")
    arguments = {
        "ood": ["uniform-noise"],
        "models": {"m": folder},
        "image_size": 32,
        "detectors": ["MaxLogit"],
    }
    done = compare(
        id=folders_of(tmp_path / "three", ("a", "b", "c")),
        output=tmp_path / "out",
        **grouped(arguments),
    )
    assert len(done.results) == 1
    with pytest.raises(InputError, match=r"m has 3 classes without names, the ID data 2 \(a, b\)"):
        compare(
            id=folders_of(tmp_path / "two", ("a", "b")), output=tmp_path / "o", **grouped(arguments)
        )


def test_a_class_without_images_on_one_side_is_named(imagenet_model, tmp_path, capfd):
    def compared(empty):
        root = Path(folders_of(tmp_path / empty / "set", ("tench", "goldfish", "ostrich")))
        for path in (root / empty / "goldfish").iterdir():
            path.unlink()
        return compare(
            id=str(root),
            ood=["uniform-noise"],
            models={"m": imagenet_model},
            detectors=["MaxLogit"],
            output=tmp_path / "out",
            test_images=20,
            reading=Reading(workers=0),
        )

    compared("test")
    said = "1 of 3 classes of set have no image to test on, so that nothing will be known of them"
    assert f"{said}: goldfish" in capfd.readouterr().err
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(InputError, match="goldfish"):
        compared("train")
    assert not (tmp_path / "out").exists()


# -- Python ----------------------------------------------------------------------------------------


def tensors(count, classes, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes if classes else torch.full((count,), -1)
    images = torch.randn(count, 3, 32, 32, generator=generator) + shift
    return TensorDataset(images + labels[:, None, None, None], labels)


def test_a_network_and_loaders_of_ones_own(tmp_path):
    torch.manual_seed(0)
    network = WideResNet(num_classes=4, depth=10, widen_factor=1)
    parts = Parts(network, classifier="fc")
    done = compare(
        models={"wrn": parts},
        id={
            "mine": (
                DataLoader(tensors(80, 4), batch_size=16, shuffle=True),
                tensors(40, 4, seed=1),
            )
        },
        ood={"far": DataLoader(tensors(30, 0, 4.0), batch_size=8), "noise": tensors(20, 0, seed=2)},
        detectors=["MaxLogit", "KNN", "ViM", "ODIN", "Mahalanobis", "ReAct", "GradNorm"],
        output=tmp_path / "out",
    )
    assert set(done.results["ood"]) == {"far", "noise"}
    assert {"MaxLogit", "KNN", "ViM", "ODIN"} <= set(done.results["detector"])
    with torch.no_grad():
        logits = network.eval()(tensors(40, 4, seed=1).tensors[0])
    scores = read_scores(tmp_path / "out/runs/wrn-seed0", "mine")["MaxLogit"]
    np.testing.assert_allclose(scores, -logits.max(dim=1).values, atol=1e-4)
    # once more, from what is kept
    again = compare(
        models={"wrn": parts},
        id={"mine": (tensors(80, 4), tensors(40, 4, seed=1))},
        ood={"far": tensors(30, 0, 4.0), "noise": tensors(20, 0, seed=2)},
        detectors=["MaxLogit", "KNN"],
        output=tmp_path / "out",
    )
    asked = done.results[done.results["detector"].isin(["MaxLogit", "KNN"])]
    pd.testing.assert_frame_equal(again.results, asked.reset_index(drop=True))


class Items(Dataset):
    """One item, many times."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return self.item


def images_of(kind, *shape):
    return TensorDataset(torch.zeros(20, *(shape or (3, 32, 32)), dtype=kind), torch.arange(20) % 2)


OUTLIERS = TensorDataset(torch.zeros(20, 3, 32, 32), torch.arange(20) % 3 - 1)
NETWORK = timm.create_model("test_resnet", num_classes=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": [NETWORK]}, "models has a ResNet without a name; expected .* dictionary"),
        ({"models": NETWORK}, "models is one ResNet; expected"),
        ({"models": {"m": 5}}, "the model m is int; expected a text"),
        ({"ood": tensors(9, 2, seed=1)}, "ood is one TensorDataset; expected .* dictionary"),
        ({"ood": [tensors(9, 2, seed=1)]}, "ood has a TensorDataset without a name"),
        ({"ood": {"far": 3}}, "far is int; expected a folder"),
        ({"recipe": "secret"}, "unknown recipe 'secret'; choose from"),
        (
            {"id": {"mine": (OUTLIERS, tensors(9, 2, seed=1))}},
            "mine has 7 images with labels below 0",
        ),
        (
            {"id": {"mine": (tensors(9, 2, seed=1), OUTLIERS)}},
            "mine has 7 images with labels below 0",
        ),
        ({"ood": {"far": images_of(torch.float64)}}, "far gives tensors of float64 .* float32"),
        ({"ood": {"far": images_of(torch.uint8)}}, "far gives tensors of uint8 .* float32"),
        ({"ood": {"far": images_of(torch.float32, 32, 32)}}, r"\[32, 32\]; expected .*C, H, W"),
        ({"ood": {"far": Items({"image": 1, "label": 0})}}, "far gives dict of image, label; exp"),
        ({"ood": {"far": Items(torch.zeros(3, 32, 32))}}, "far gives Tensor; expected"),
        (
            {"id": {"mine": (images_of(torch.float32, 1, 32, 32), tensors(9, 2, seed=1))}},
            r"m cannot take the ID data's tensors, of shape \[1, 32, 32\]",
        ),
    ],
)
def test_objects_that_are_something_else_are_one_line(change, message, tmp_path):
    given = {
        "models": {"m": NETWORK},
        "id": {"mine": (tensors(20, 2), tensors(9, 2, seed=1))},
        "ood": {"far": tensors(9, 0, seed=2)},
        "detectors": ["MaxLogit"],
    }
    with pytest.raises(InputError, match=message) as error:
        compare(**given | change, output=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("few", [True, False])
def test_too_few_images_for_vim_are_warned_of(few, tmp_path, capfd):
    torch.manual_seed(0)
    compare(
        models={"wrn": Parts(WideResNet(num_classes=4, depth=10, widen_factor=1), classifier="fc")},
        id={"mine": (tensors(24 if few else 80, 4), tensors(8, 4, seed=1))},
        ood={"far": tensors(8, 0, 4.0)},
        detectors=["MaxLogit", "ViM"],
        output=tmp_path / "out",
    )
    assert ("wrn, ViM: the images that it was fitted on" in capfd.readouterr().err) == few


def test_a_network_without_a_known_classifier_says_how_to_name_it(tmp_path):
    network = WideResNet(num_classes=4, depth=10, widen_factor=1)
    with pytest.raises(InputError, match=r"Parts\(model, classifier='fc'\)"):
        compare(
            models={"wrn": network},
            id={"mine": (tensors(8, 4), tensors(8, 4, seed=1))},
            ood={"far": tensors(3, 0, seed=2)},
            output=tmp_path / "out",
        )
    with pytest.raises(InputError, match="how its images are prepared is not known"):
        compare(
            models={"wrn": Parts(WideResNet(7, depth=10, widen_factor=1), "fc")},
            output=tmp_path / "out",
        )
    with pytest.raises(InputError, match="the ID data gives tensors"):
        compare(
            losses=["softmax"],
            id={"mine": (tensors(8, 4), tensors(8, 4, seed=1))},
            ood={"far": tensors(3, 0, seed=2)},
            output=tmp_path / "out",
        )


def test_a_model_in_memory_that_diverged_is_refused(tmp_path):
    network = timm.create_model("test_resnet", num_classes=7)
    with torch.no_grad():
        network.fc.bias[2] = float("inf")
    with pytest.raises(InputError, match=r"mine has NaN or infinity in fc\.bias; give"):
        compare(models={"mine": network}, output=tmp_path / "out")


# -- Sources ---------------------------------------------------------------------------------------


def test_a_folder_of_models_is_all_of_them(compared):
    runs = str(compared.output / "runs")
    found = given_models([runs])
    assert [given.name for given in found] == [
        "isomax-seed0",
        "isomax-seed1",
        "softmax-seed0",
        "softmax-seed1",
    ]
    assert [(given.name, given.seed) for given in given_models([f"all={runs}"])] == [
        ("all", seed) for seed in range(4)
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet81", "did you mean resnet18"),
        ("{tmp}/nothing", "timm has no model .*, and there is no such folder; timm"),
        ("{tmp}", "holds no model: expected config.json"),
        ("{tmp}/broken", "has no model.safetensors"),
    ],
)
def test_models_that_cannot_be_had_are_one_line(source, message, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    if source == "{tmp}":
        shutil.rmtree(tmp_path / "broken")
    with pytest.raises(InputError, match=message) as error:
        compare(models={"m": source.format(tmp=tmp_path)}, output=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
