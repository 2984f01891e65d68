"""A pretrained network: its head first, on features computed once; never worse for training on."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from isomax_adapters.timm import load_model
from isomax_evaluation import data, train
from isomax_evaluation.data.settings import Preprocessing
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training import head_first
from isomax_evaluation.training import train as training
from isomax_evaluation.training.best import HEAD, MEANS, WHOLE, Best, clearly_better
from isomax_evaluation.training.columns import FILES, OTHERS
from isomax_evaluation.training.jobs import Job, build_model, make_optimizer, recipe_for
from isomax_evaluation.training.losses import LOSSES
from isomax_evaluation.training.recipes import RECIPES, Recipe, learning_rate
from isomax_evaluation.training.source import Source

from ...settings import grouped

FINETUNE = replace(RECIPES["digits"], keep="best", epochs=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a network that has seen digits, with a classifier of other classes."""
    folder = tmp_path_factory.mktemp("weights")
    made = train(
        "digits",
        folder / "out",
        model="test_resnet",
        loss="softmax",
        recipe=replace(RECIPES["digits"], epochs=2),
        images_per_class=80,
        preprocessing=Preprocessing(image_size=32),
    )
    tensors = load_file(made / "model.safetensors")
    tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(11, 96), torch.zeros(11)
    save_file(tensors, folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def finetune(output, weights, loss="isomax+", **change):
    return train(
        "digits",
        output,
        model=Source("test_resnet", weights=weights),
        loss=loss,
        recipe=replace(FINETUNE, **change),
        images_per_class=80,
        alpha=0.1,
        preprocessing=Preprocessing(image_size=32),
    )


def rows_of(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def summary_of(output):
    return json.loads((output / "summary.json").read_text())


def test_every_file_of_the_output_folder_is_documented(weights, tmp_path):
    folder = finetune(tmp_path, weights, head_first=1).parent
    found = {f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()}
    assert found == {*FILES, *OTHERS} - {"model.onnx"}
    for name, columns in FILES.items():
        if name.endswith(".csv"):
            assert list(pd.read_csv(folder / name).columns) == list(columns), name
    assert set(summary_of(folder)) == set(FILES["summary.json"])
    assert {key for row in rows_of(folder) for key in row} == set(FILES["metrics.jsonl"])


@pytest.mark.parametrize("loss", LOSSES)
def test_without_an_epoch_of_the_whole_the_backbone_stays_and_the_head_is_good(
    loss, weights, tmp_path
):
    folder = finetune(tmp_path, weights, loss, epochs=0)
    before, after = load_file(weights), load_file(folder / "model.safetensors")
    for name, tensor in before.items():
        assert name.startswith("fc.") or torch.equal(tensor, after[name]), name
    summary = summary_of(tmp_path)
    assert summary["kept"] in ("the head alone, 20 epochs", "class means, nothing trained")
    assert summary["test_accuracy"] > 0.9
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert rows[-1]["head_train_loss"] < rows[0]["head_train_loss"]
    with pytest.raises(InputError, match="holds a training of the head alone"):
        finetune(tmp_path, weights, loss, epochs=2)


@pytest.mark.parametrize("copies", [0, 1])
def test_the_backbone_runs_once_over_each_image_and_copy(copies, weights, tmp_path, monkeypatch):
    passes = []
    original = training.build_model

    def counting(*arguments, **named):
        model = original(*arguments, **named)
        model.conv1[0].register_forward_hook(lambda *args: passes.append(len(args[1][0])))
        return model

    monkeypatch.setattr(training, "build_model", counting)
    finetune(tmp_path, weights, "isomax", epochs=0, head_first=30, augment_copies=copies)
    copied, selection = copies * 490, 21
    test = len(data.open_splits("digits").test)
    # those that select and calibrate, and the test images, are seen when all is done
    assert sum(passes) == 7 * 80 + copied + selection + test


@pytest.mark.parametrize(
    ("loss", "mixing", "mixed"), [("isomax+", "isomax+", 0.2), ("dismax", "dismax+fpr", 0.0)]
)
def test_heads_alone_see_images_that_are_not_mixed(loss, mixing, mixed, weights, tmp_path):
    change = {"epochs": 1, "head_first": 2, "batch_size": 16}
    finetune(tmp_path / "plain", weights, loss, **change)
    finetune(tmp_path / "mixed", weights, mixing, mixup=mixed, **change)
    plain, other = (rows_of(tmp_path / name) for name in ("plain", "mixed"))
    heads = [[row.get("head_train_loss") for row in rows] for rows in (plain, other)]
    assert heads[0] == heads[1]
    assert heads[0][0] is not None
    assert plain[-1]["train_loss"] != other[-1]["train_loss"]


@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        (lambda head: None, "the head alone, 20 epochs"),
        (lambda head: head.prototypes[2:].zero_(), "class means, nothing trained"),
    ],
    ids=["as good", "much worse"],
)
def test_class_means_are_kept_where_they_are_clearly_better(
    spoil, kept, weights, tmp_path, monkeypatch
):
    def nothing_learnt(head, *arguments, **named):
        with torch.no_grad():
            spoil(head)
        return [{"epoch": 1, "train_loss": 0.0}]

    monkeypatch.setattr(head_first, "fit_head", nothing_learnt)
    finetune(tmp_path, weights, epochs=0)
    assert summary_of(tmp_path)["kept"] == kept


@pytest.mark.parametrize(
    ("lost", "won", "clear"),
    [(0, 0, False), (1, 0, False), (2, 0, True), (9, 6, False), (9, 3, True)],
)
def test_a_few_images_more_say_nothing(lost, won, clear):
    then = torch.tensor([True] * lost + [False] * won + [True] * 7)
    now = torch.tensor([False] * lost + [True] * won + [True] * 7)
    assert clearly_better(then, now) is clear


def test_what_was_trained_longer_is_kept_unless_it_is_clearly_worse(tmp_path):
    def right(count):
        return torch.arange(100) < count

    def kept(*offers):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for stage, count in offers:
            # as after an interruption
            Best(folder, True, True).offer(torch.nn.Linear(1, 1), right(count), stage, f"{count}")
        return Best(folder, True, True).put_into(torch.nn.Linear(1, 1))

    assert kept((MEANS, 80), (HEAD, 80), (WHOLE, 79)) == "79"
    assert kept((HEAD, 80), (WHOLE, 79), (WHOLE, 82), (WHOLE, 81)) == "82"
    assert kept((HEAD, 80), (WHOLE, 70), (WHOLE, 78)) == "80"
    assert kept((MEANS, 80), (HEAD, 70), (WHOLE, 90)) == "90"
    assert kept() == ""


@pytest.mark.parametrize(("loss", "first"), [("softmax", 20), ("isomax+", 20), ("isomax+", None)])
def test_a_rate_that_destroys_the_network_costs_nothing(loss, first, weights, tmp_path):
    alone = finetune(tmp_path / "alone", weights, loss, epochs=0)
    finetune(tmp_path / "burnt", weights, loss, lr=30.0, head_first=first, clip_grad=10.0)
    kept = summary_of(tmp_path / "burnt")
    assert kept["kept"] in ("the head alone, 20 epochs", "class means, nothing trained")
    assert kept["val_accuracy"] == summary_of(tmp_path / "alone")["val_accuracy"]
    same = load_file(tmp_path / "burnt/model/model.safetensors")
    for name, tensor in load_file(alone / "model.safetensors").items():
        assert torch.equal(tensor, same[name]), name
    last = finetune(
        tmp_path / "last", weights, loss, lr=30.0, head_first=first, clip_grad=10.0, keep="last"
    )
    assert "kept" not in summary_of(tmp_path / "last")
    assert not torch.equal(
        load_file(last / "model.safetensors")["conv1.0.weight"], same["conv1.0.weight"]
    )


@pytest.mark.parametrize("stop", [0, 1])
def test_interrupted_before_or_after_the_first_epoch_it_ends_with_the_same_weights(
    stop, weights, tmp_path, monkeypatch
):
    change = {"epochs": 2, "head_first": 3, "augment_copies": 1}
    whole = finetune(tmp_path / "whole", weights, **change)
    from isomax_evaluation.training import loop

    original, saved = loop._save_checkpoint, []

    def stopping(*arguments):
        if len(saved) == stop:
            raise KeyboardInterrupt
        saved.append(1)
        original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_save_checkpoint", stopping)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path / "cut", weights, **change)
    again = finetune(tmp_path / "cut", weights, **change)
    files = [folder / "model.safetensors" for folder in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    rows = [rows_of(tmp_path / name) for name in ("whole", "cut")]
    for row in (*rows[0], *rows[1]):
        row.pop("time")
        row.pop("images_per_second", None)
        row.pop("head_seconds", None)
    assert rows[0] == rows[1]


def test_a_classifier_that_is_a_convolution(tmp_path):
    model = timm.create_model("mobilenetv3_small_050", num_classes=5)
    assert model.get_classifier().weight.dim() == 2
    folder = tmp_path / "w.safetensors"
    hrnet = timm.create_model("test_byobnet", num_classes=5)
    save_file(hrnet.state_dict(), folder)
    train(
        "digits",
        tmp_path / "out",
        model=Source("test_byobnet", weights=str(folder)),
        loss="softmax",
        recipe=replace(FINETUNE, epochs=0, head_first=2),
        images_per_class=40,
        alpha=0.1,
        preprocessing=Preprocessing(image_size=32),
    )
    assert load_model(tmp_path / "out/model").num_classes == 7


def test_transformers_and_networks_of_convolutions_have_recipes_of_their_own(tmp_path):
    assert recipe_for("test_resnet", False) == "scratch"
    assert recipe_for("test_resnet", True) == "finetune"
    assert recipe_for("test_vit", True) == "finetune-transformer"
    path = tmp_path / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=5, img_size=32).state_dict(), path)
    train(
        "digits",
        tmp_path / "out",
        model=Source("test_vit", weights=str(path)),
        loss="isomax+",
        recipe=replace(RECIPES["finetune-transformer"], epochs=2, augment="none"),
        images_per_class=40,
        alpha=0.1,
        preprocessing=Preprocessing(image_size=32),
    )
    rows = rows_of(tmp_path / "out")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_the_learning_rate_follows_the_batch_size():
    assert learning_rate(Recipe(lr=None, lr_base=0.02, batch_size=64)) == pytest.approx(0.005)
    adam = Recipe(lr=None, lr_base=4e-4, batch_size=64, opt="adamw")
    assert learning_rate(adam) == pytest.approx(2e-4)
    assert learning_rate(Recipe(lr=0.3, batch_size=8)) == 0.3


@pytest.mark.parametrize("layer_decay", [None, 0.8])
def test_the_head_has_a_rate_of_its_own(layer_decay):
    recipe = replace(FINETUNE, layer_decay=layer_decay)
    job = Job(Source("test_resnet"), "isomax+", recipe)
    model = build_model(job, 7)
    groups = make_optimizer(model, recipe, factor=10.0).param_groups
    scale = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    assert {scale[id(p)] for p in model.fc.parameters()} == {10.0}
    rest = {scale[id(p)] for name, p in model.named_parameters() if not name.startswith("fc.")}
    assert max(rest) <= 1.0


def test_weights_that_do_not_fit_are_refused_before_a_folder_is_made(weights, tmp_path):
    for change, message in [
        ({"model": "test_vit"}, "does not fit test_vit"),
        ({"weights": str(tmp_path / "no.pth")}, "there is no checkpoint"),
        ({"pretrained": True}, "two places to start from"),
    ]:
        arguments = {"model": "test_resnet", "weights": weights, "recipe": FINETUNE} | change
        with pytest.raises(InputError, match=message):
            train("digits", tmp_path / "out", **grouped(arguments | {"image_size": 32}))
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="the head alone, take --pretrained or --weights"):
        train("digits", tmp_path / "out", model="test_resnet", recipe=replace(FINETUNE, epochs=0))


def test_class_means_are_a_checkpoint_for_scripts_of_timm(weights, tmp_path):
    folder = finetune(tmp_path, weights, "isomax+", epochs=0, head_first=0)
    assert summary_of(tmp_path)["kept"] == "class means, nothing trained"
    mine = load_model(folder)
    theirs = timm.create_model(
        "isomaxplus_test_resnet", num_classes=mine.num_classes,
        checkpoint_path=folder / "model.safetensors",
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(mine(x), theirs(x))
