"""Training: exact resume, several processes, and what must never cost a finished epoch."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import timm.data
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from isomax.calibration import Calibration
from isomax_adapters.timm import load_calibration, load_model
from isomax_evaluation import data, train
from isomax_evaluation.data.settings import Preprocessing
from isomax_evaluation.extraction.doubts import doubts_of
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.batches import EpochBatches, train_loader
from isomax_evaluation.training.jobs import Job
from isomax_evaluation.training.losses import LOSSES
from isomax_evaluation.training.recipes import RECIPES
from isomax_evaluation.training.source import Source

from ...command import Command
from ...image_folders import make_folder
from ...leftover_threads import NONE_LEFT
from ...settings import grouped
from ..killing import in_own_process, training

SHORT = replace(RECIPES["digits"], epochs=2)


def epochs_of(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_ends_with_a_calibrated_model_folder(loss, tmp_path):
    folder = train(
        "digits",
        tmp_path,
        model="test_resnet",
        loss=loss,
        recipe=SHORT,
        images_per_class=60,
        preprocessing=Preprocessing(image_size=32),
    )
    epochs = epochs_of(tmp_path)
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    calibration = load_calibration(folder)
    expected = {
        "softmax": "energy_score",
        "isomax": "entropic_score",
        "isomax+": "minimum_distance_score",
        "dismax": "max_mean_logit_entropy_score",
    }
    assert calibration.score == expected[loss.removesuffix("+fpr")]
    assert load_model(folder).pretrained_cfg["label_names"] == list("0123456")


@pytest.mark.parametrize(
    "change",
    [
        {"opt": "adamw", "lr": 1e-3, "sched": "step", "warmup_epochs": 1},
        {"mixup": 0.2, "cutmix": 1.0, "smoothing": 0.1, "reprob": 0.3, "augment": "timm"},
        {"smoothing": 0.1, "ema_decay": 0.9, "clip_grad": 1.0, "layer_decay": 0.8},
        {"freeze_backbone": 1, "accumulate": 2, "channels_last": True},
        {"mixed_precision": "bf16", "auto_augment": "rand-m3", "augment": "timm"},
        {"in_memory": True, "channels_last": True},
    ],
    ids=lambda change: "-".join(change),
)
def test_the_choices_of_a_recipe_work(change, tmp_path):
    train(
        "digits",
        tmp_path,
        model="test_resnet",
        recipe=replace(SHORT, **change),
        images_per_class=40,
        alpha=0.1,
        preprocessing=Preprocessing(image_size=32),
    )
    assert len(epochs_of(tmp_path)) == 2


@pytest.mark.parametrize(
    ("frozen", "kinds"),
    [
        ({"freeze_backbone": 1}, {"prototypes"}),
        ({"freeze_bn": True}, {"prototypes", "weight", "bias"}),
    ],
    ids=["backbone", "batch norm"],
)
def test_what_is_frozen_stays_as_it_was(frozen, kinds, tmp_path):
    from isomax_evaluation.training.jobs import Job, build_model

    recipe = replace(SHORT, epochs=1, **frozen)
    folder = train(
        "digits",
        tmp_path,
        model="test_resnet",
        recipe=recipe,
        images_per_class=40,
        alpha=0.1,
        preprocessing=Preprocessing(image_size=32),
    )
    before = build_model(Job(Source("test_resnet"), "isomax", recipe), 7).state_dict()
    after = load_file(folder / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in changed} == kinds


def test_killed_at_ten_random_moments_it_ends_with_the_same_weights(tmp_path):
    # fewer than ten only if the training was over before
    assert in_own_process(training, tmp_path) >= 5
    whole = (tmp_path / "whole/model/model.safetensors").read_bytes()
    assert (tmp_path / "killed/model/model.safetensors").read_bytes() == whole
    losses = [[e["train_loss"] for e in epochs_of(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]


COMMAND = """
import runpy

try:
    runpy.run_module("isomax_evaluation", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
"""


@pytest.mark.parametrize(("first", "cased"), [(False, False), (True, False), (False, True)])
def test_two_processes_give_the_loss_curve_of_one(first, cased, tmp_path, free_port, isomax):
    """Half of each batch each, without augmentation, on a backbone without batch norm; also with
    the head first, and of classes whose names only case or a zero tells apart, which every process
    orders alike."""
    root = "digits"
    if cased:
        root = make_folder(tmp_path / "set", ("a", "A", "1", "01"), 40)
    arguments = [
        "train", "--data", root, "--model", "test_vit", "--image-size", 32, "--epochs", 3,
        "--recipe", "digits", "--augment", "none", "--lr", 0.01, "--images-per-class", 60,
        "--no-track", "--alpha", 0.1,
    ]  # fmt: skip
    if first:
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=5, img_size=32)
        save_file(model.state_dict(), tmp_path / "vit.safetensors")
        arguments += ["--weights", tmp_path / "vit.safetensors", "--head-first", 2, "--epochs", 1]
    alone = isomax(*arguments, "--output", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    together = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *(
                "--master-port",
                str(free_port),
                "--no-python",
                sys.executable,
                "-c",
                COMMAND + NONE_LEFT,
            ),
            *map(str, arguments),
            *("--output", str(tmp_path / "together")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("model folder:") == 1
    assert not list((tmp_path / "together").glob("*.partial"))
    kinds = ("train_loss", "val_accuracy", "head_train_loss", "head_val_accuracy")
    curves = [
        [[row.get(kind, 0.0) for kind in kinds] for row in epochs_of(tmp_path / name)]
        for name in ("alone", "together")
    ]
    assert len(curves[0]) == 3
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=0, atol=1e-4)


def test_augmented_images_depend_on_seed_epoch_and_image_only(photos):
    images = data.open_images(str(photos))
    augmented = {"augment": "timm", "auto_augment": "rand-m5", "reprob": 0.5, "color_jitter": 0.4}
    recipe = replace(SHORT, **augmented)
    config = timm.data.resolve_data_config({"input_size": (3, 32, 32)})

    def batch(workers, epoch, already_drawn=0):
        torch.manual_seed(0)
        torch.rand(already_drawn)
        batches = EpochBatches(len(images), 40, 0, rank=0, processes=1, accumulate=1)
        batches.epoch = epoch
        job = Job(Source("test_resnet"), "softmax", recipe, workers=workers)
        loader = train_loader(job, images, config, batches, Accelerator(cpu=True))
        return next(iter(loader))[0]

    first = batch(0, epoch=0)
    for workers, drawn in ((0, 7), (1, 0), (3, 0)):
        assert torch.equal(batch(workers, 0, drawn), first)
    assert not torch.equal(batch(0, epoch=1), first)


def test_accumulated_steps_give_the_loss_curve_of_whole_batches(tmp_path):
    recipe = replace(RECIPES["digits"], epochs=2, augment="none", lr=0.01)
    for accumulate in (1, 4):
        train(
            "digits",
            tmp_path / str(accumulate),
            model="test_vit",
            alpha=0.1,
            recipe=replace(recipe, accumulate=accumulate),
            images_per_class=40,
            preprocessing=Preprocessing(image_size=32),
        )
    curves = [[e["train_loss"] for e in epochs_of(tmp_path / name)] for name in ("1", "4")]
    torch.testing.assert_close(curves[0], curves[1], rtol=0, atol=1e-4)


# -- Bad input ---------------------------------------------------------------------------------


def digits(output, **change):
    return train(
        "digits",
        output,
        model="test_resnet",
        recipe=replace(SHORT, **change),
        images_per_class=40,
        alpha=0.1,
        preprocessing=Preprocessing(image_size=32),
    )


def test_a_model_that_calls_nothing_unknown_is_warned_of(tmp_path, capfd):
    digits(tmp_path, lr=1e-12, epochs=1)  # all distances stay alike
    said = " ".join(capfd.readouterr().err.split())
    assert "no image will be called unknown" in said
    assert "isomax, seed 0: epoch 1 of 1, training loss" in said  # no terminal, so in lines


def test_a_model_that_knows_no_class_is_warned_of():
    labels = torch.arange(40) % 2
    wrong = 5 * torch.nn.functional.one_hot(1 - labels, 2).float()
    wrong[0] = 1.0  # so that the threshold is not what is wrong
    model = torch.nn.Linear(1, 2)
    found = doubts_of(model, Calibration.fit(wrong, labels), wrong, labels, [1.0, 0.5])
    assert len(found) == 1
    assert "no better than by naming the largest class" in found[0]
    assert not doubts_of(model, Calibration.fit(-wrong, labels), -wrong, labels, [1.0, 0.5])


def test_a_finished_run_says_how_to_train_it_for_longer(tmp_path):
    digits(tmp_path / "out", epochs=1)
    with pytest.raises(InputError, match="holds a training of 1 epochs") as refused:
        digits(tmp_path / "out", epochs=3)
    said = str(refused.value)
    weights = re.search("--weights ([^ ]+)", said)[1]
    output = re.search("--output ([^ ]+)", said)[1]
    train(
        "digits",
        output,
        model=Source("test_resnet", weights=weights),
        recipe=replace(SHORT, epochs=3),
        images_per_class=40,
        alpha=0.1,
        preprocessing=Preprocessing(image_size=32),
    )
    losses = [epochs_of(folder)[-1]["train_loss"] for folder in (tmp_path / "out", Path(output))]
    assert losses[1] < losses[0]
    with pytest.raises(InputError, match="holds another run"):
        digits(tmp_path / "out", epochs=3, lr=0.5)


def test_weights_that_cannot_be_had_leave_no_folder(tmp_path):
    with Command(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub")) as isomax:
        run = isomax(
            "train", "--data", "digits", "--model", "test_resnet", "--pretrained",
            "--output", tmp_path / "out", "--no-track",
        )  # fmt: skip
    assert run.returncode == 2
    assert "isomax: no pretrained weights of test_resnet: " in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


def test_weights_of_a_training_that_diverged_are_refused(tmp_path):
    tensors = timm.create_model("test_resnet").state_dict()
    tensors["bn1.running_var"][0] = float("nan")
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"NaN or infinity in bn1\.running_var"):
        train("digits", tmp_path / "out", Source(weights=str(tmp_path / "w.safetensors")))
    assert not (tmp_path / "out").exists()


def test_other_settings_are_listed(tmp_path):
    digits(tmp_path)
    with pytest.raises(InputError, match=r"recipe\.lr: 0\.1 there, 0\.2 given"):
        digits(tmp_path, lr=0.2)
    digits(tmp_path)  # the same again is no error


def test_a_loss_that_is_nan_stops_and_keeps_the_last_epoch(tmp_path, monkeypatch):
    from isomax_evaluation.training import batches

    original, calls = batches.mosaic, 0

    def spoil(inputs, target, num_classes):
        nonlocal calls
        calls += 1
        inputs, target = original(inputs, target, num_classes)
        return (inputs * torch.nan if calls > 9 else inputs), target

    monkeypatch.setattr(batches, "mosaic", spoil)
    # one batch is tried; 34 images per class and seven classes: seven steps in an epoch
    with pytest.raises(InputError, match=r"NaN|loss is nan") as error:
        train(
            "digits",
            tmp_path,
            model="test_resnet",
            loss="dismax+fpr",
            recipe=SHORT,
            images_per_class=40,
            alpha=0.1,
            preprocessing=Preprocessing(image_size=32),
        )
    assert "epoch 2, step 2" in str(error.value)
    assert "the checkpoint of epoch 1 is kept" in str(error.value)
    assert len(epochs_of(tmp_path)) == 1
    assert (tmp_path / "checkpoint.pt").is_file()


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    original, saved = torch.save, []

    def full_on_the_second(content, path):
        saved.append(path)
        if len(saved) == 2:
            Path(path).write_bytes(b"half of a check")
            raise OSError(28, "No space left on device")
        original(content, path)

    monkeypatch.setattr(torch, "save", full_on_the_second)
    with pytest.raises(InputError, match="No space left on device; the older one is intact"):
        digits(tmp_path, epochs=3)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(json.loads(content["history"])) == 1
    monkeypatch.undo()
    digits(tmp_path, epochs=3)
    assert [e["epoch"] for e in epochs_of(tmp_path)] == [1, 2, 3]


def test_images_that_do_not_decode_are_refused_or_left_out(tmp_path, photos, capfd):
    import shutil

    shutil.copytree(photos, tmp_path / "data")
    cut = tmp_path / "data" / "ash" / "003.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "data" / "birch" / "zero.jpg").touch()
    arguments = {
        "model": "test_resnet",
        "recipe": replace(SHORT, batch_size=16),
        "image_size": 32,
        "alpha": 0.2,
    }
    with pytest.raises(InputError, match=r"do not decode: .*--skip-bad-images"):
        train(str(tmp_path / "data"), tmp_path / "out", **grouped(arguments))
    assert not (tmp_path / "out").exists()
    train(
        str(tmp_path / "data"), tmp_path / "out", **grouped(arguments | {"skip_bad_images": True})
    )
    assert "left out" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opt": "sgdd"}, "optimiser 'sgdd'"),
        ({"sched": "spiral"}, "sched is 'spiral'; expected cosine, tanh"),
        ({"augment": "magic"}, "augment is 'magic'; expected timm, pad-crop or none"),
        ({"batch_size": 31, "accumulate": 2}, "not a multiple"),
        ({"epochs": 0}, "at least 1"),
        ({"mixed_precision": "fp4"}, "mixed_precision is 'fp4'"),
        ({"in_memory": True, "augment": "timm"}, "use pad-crop or none"),
    ],
)
def test_recipes_that_cannot_work_are_refused_before_training(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        digits(tmp_path / "out", **change)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_mosaics_and_mixup_do_not_go_together(tmp_path):
    with pytest.raises(InputError, match="mosaics of its own"):
        train("digits", tmp_path, loss="dismax+fpr", recipe=replace(SHORT, mixup=0.2))
