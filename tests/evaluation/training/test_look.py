"""What is said of a training before it begins."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from isomax_evaluation import data, train
from isomax_evaluation.data.settings import Preprocessing
from isomax_evaluation.training import look
from isomax_evaluation.training.dry_run import Kept, Tried, dry_run
from isomax_evaluation.training.jobs import Job
from isomax_evaluation.training.recipes import RECIPES
from isomax_evaluation.training.source import Source

from ...image_folders import make_folder
from ...settings import grouped

SHORT = replace(RECIPES["digits"], epochs=1, batch_size=16, keep="best")


def looked(root, output, **change):
    given_ = {"model": "test_resnet", "recipe": SHORT, "image_size": 32, "alpha": 0.2, "workers": 0}
    return train(str(root), output, **grouped(given_ | change))


def test_a_check_says_what_would_be_done_and_writes_nothing(tmp_path, capfd):
    root = make_folder(tmp_path / "set", ("ash", "birch"), 40)
    looked(root, tmp_path / "out", check=True)
    said = capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert said.startswith("test_resnet starts from random weights, ")
    for part in (
        "to start from trained ones, give --pretrained or --weights FILE",
        "images: 54 training, 10 calibration, 16 test; the smallest class has 27 to train on",
        "files: sizes",
        "modes RGB 54",
        "model: test_resnet",
        "images become 3x32x32",
        "recipe: 1 epochs of 3 updates of 16 images, sgd at 0.1, pad-crop augmentation",
        "the last weights are kept",  # there are too few images to select on
        "memory: about",
        "images a second, measured on",
        "so that the threshold is not the largest of the calibration scores",
    ):
        assert part in said
    looked(root, tmp_path / "out")
    begun = capfd.readouterr().err
    assert "recipe: 1 epochs of 3 updates" in begun
    assert "images a second" not in begun


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_check_says_how_long_features_take(epochs, tmp_path, capfd):
    root = make_folder(tmp_path / "set", ("ash", "birch"), 40)
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet", num_classes=3).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    change = {"weights": str(tmp_path / "weights.safetensors"), "check": True}
    looked(root, tmp_path / "out", recipe=replace(SHORT, epochs=epochs, augment_copies=1), **change)
    said = capfd.readouterr().err
    assert "for the features of 108 images" in said  # 54, and a copy of each
    assert "to try the model on 26 at the end" in said  # 16 to test on, 10 to calibrate on
    assert ("an epoch takes about" in said) == (epochs == 1)
    assert "recipe: the head alone for 20 epochs" in said
    assert "unchanged images and 1 augmented copies" in said
    for part in ("updates of 16 images", "memory: about"):
        assert (part in said) == (epochs == 1)


@pytest.mark.parametrize(
    ("loss", "change", "part"),
    [
        ("isomax", {"epochs": 1}, "unchanged images, then 1 epochs"),
        ("isomax+", {"epochs": 1}, "unchanged images (to fall back on), then 1 epochs"),
        ("isomax+", {"epochs": 1, "keep": "last"}, "recipe: 1 epochs"),
        ("isomax+", {"epochs": 0, "head_first": 0}, "nothing is trained but where the head begins"),
    ],
)
def test_a_check_names_what_is_trained(loss, change, part, tmp_path, capfd):
    root = make_folder(tmp_path / "set", ("ash", "birch"), 200)
    weights = timm.create_model("test_resnet", num_classes=3).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    given_ = {"weights": str(tmp_path / "weights.safetensors"), "loss": loss, "check": True}
    given_["val_share"] = 0.4
    recipe = replace(SHORT, **({"keep": "best"} | change))
    looked(root, tmp_path / "out", recipe=recipe, **given_)
    said = capfd.readouterr().err
    assert " selection, " in said
    assert part in said


@pytest.mark.parametrize(
    ("workers", "device", "each"), [(0, "cpu", 3), (2, "cpu", 2), (2, "cuda", 1)]
)
def test_reading_counts_beside_computing(workers, device, each, monkeypatch):
    """An image takes 2 seconds to read, 1 to compute with, by a clock that is ours."""
    now = [0.0]

    def loader():
        for _ in range(3):
            now[0] += 2 * 4
            yield torch.zeros(4, 1), torch.zeros(4)

    def work(inputs, target):
        now[0] += len(inputs)

    monkeypatch.setattr(look.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    accelerator = SimpleNamespace(device=torch.device(device))
    assert look._seconds_per_image(loader(), work, workers, accelerator) == each


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_what_is_kept_for_the_backward_pass_grows_with_the_images(name):
    model = timm.create_model(name, num_classes=3)
    size = model.default_cfg["input_size"][1]
    found = []
    for count in (2, 4):
        with (kept := Kept(model)):
            output = model(torch.randn(count, 3, size, size))
        assert output.requires_grad
        found.append(kept.bytes)
    assert found[1] == pytest.approx(2 * found[0], rel=0.01)
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert found[0] > 2 * 4 * first.out_channels


@given(
    st.integers(10**6, 10**12), st.integers(0, 10**9), st.floats(1, 10**9), st.integers(50, 10**6),
    st.integers(1, 4),
)  # fmt: skip
def test_the_largest_batch_fits_and_the_next_one_does_not(free, fixed, per_image, size, accumulate):
    recipe = replace(SHORT, accumulate=accumulate)
    tried = Tried([], 8, 1, 1.0, per_image, fixed)
    place = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(look, "free_memory", lambda device: free)
        found = look.largest_batch(Job(Source("a"), "softmax", recipe), tried, size, place)
    smallest = max(2, accumulate)
    assert found % accumulate == 0
    assert found >= smallest

    def fits(batch):
        memory = fixed + look.WORKSPACE * per_image * batch / accumulate
        return memory <= look.SHARE * free and batch <= size / look.FEWEST_UPDATES

    assert fits(found) or found == smallest
    assert not fits(found + 8 * accumulate)


def test_a_training_takes_the_largest_batch_and_goes_on_with_it(tmp_path, monkeypatch, capfd):
    root = make_folder(tmp_path / "set", ("ash", "birch"), 240)
    images = data.open_images(str(root))
    tried = dry_run(
        Job(Source("test_resnet"), "isomax", SHORT, preprocessing=Preprocessing(image_size=32)),
        images,
        Accelerator(),
    )
    assert tried.fixed > 3 * 4 * 300_000  # weights, gradients, momentum
    for free, batch in ((20, 8), (1000, 8)):  # it goes on as it was begun
        monkeypatch.setattr(
            look, "free_memory", lambda device, n=free: tried.fixed / 0.8 + n * tried.per_image
        )
        looked(root, tmp_path / "out", auto_batch=True)
        settings = json.loads((tmp_path / "out/settings.json").read_text())
        assert settings["recipe"]["batch_size"] == batch
        assert f"{batch} images per update" in capfd.readouterr().err
