import copy
import json

import pytest
import safetensors.torch
import timm
import torch
from timm.models._hub import save_for_hf

import isomax_adapters.timm as isomax_timm
from isomax.calibration import Calibration
from isomax_adapters.runtime.decoding import Decoding


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    return isomax_timm.attach(model, "dismax").eval()


@pytest.fixture
def calibration():
    return Calibration.fit(-torch.rand(50, 3), torch.arange(50) % 3, alpha=0.1)


def test_round_trip(model, calibration, tmp_path):
    images = torch.randn(2, 3, 48, 48)
    config = {"input_size": (3, 48, 48), "mean": (0.1, 0.2, 0.3), "crop_pct": 1.0}
    folder = isomax_timm.save_model(
        model, tmp_path / "m", ["cat", "dog", "owl"], config, calibration
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.json",
        "calibration.safetensors",
        "config.json",
        "model.safetensors",
    ]
    loaded = isomax_timm.load_model(folder)
    assert not loaded.training
    assert torch.equal(loaded(images), model(images))
    assert isomax_timm.head_of(loaded) == "dismax"
    assert loaded.pretrained_cfg["label_names"] == ["cat", "dog", "owl"]
    resolved = timm.data.resolve_model_data_config(loaded)
    assert resolved["input_size"] == (3, 48, 48)
    assert tuple(resolved["mean"]) == (0.1, 0.2, 0.3)
    found = isomax_timm.load_calibration(folder)
    assert found == calibration
    assert set(found.outputs) == {"scores", "logits"}
    assert all(
        torch.equal(found.outputs[name], calibration.outputs[name]) for name in found.outputs
    )
    # timm's own way, unaided
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(theirs(images), model(images))
    # and with another number of classes: the backbone's weights, a new head
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).eval()
    torch.testing.assert_close(other.forward_features(images), model.forward_features(images))
    assert other(images).shape == (2, 7)


def test_whoever_may_read_the_folder_can_read_its_weights(model, tmp_path):
    folder = isomax_timm.save_model(model, tmp_path / "m")
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_how_images_are_read_is_kept(model, tmp_path):
    """Also of a model that was loaded, changed and saved again."""
    twelve, other_way = Decoding(3, (0, 4095)), Decoding(3, (5, 9), "upright")
    first = isomax_timm.save_model(model, tmp_path / "a", decoding=twelve)
    loaded = isomax_timm.load_model(first)
    assert loaded.decoding == twelve
    folders = [first, isomax_timm.save_model(copy.deepcopy(loaded), tmp_path / "b")]
    for folder in folders:
        assert json.loads((folder / "config.json").read_text())["grey_range"] == [0, 4095]
    other = isomax_timm.save_model(loaded, tmp_path / "c", decoding=other_way)
    assert isomax_timm.load_model(other).decoding == other_way
    without = isomax_timm.save_model(model, tmp_path / "d")
    assert isomax_timm.load_model(without).decoding == Decoding()
    settings = json.loads((other / "config.json").read_text()) | {"grey_range": [9, 5]}
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(isomax_timm.ModelFolderError, match=r"config.json: grey range \[9, 5\]"):
        isomax_timm.load_model(other)


def test_a_link_to_a_folder_stays_one(model, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "far/m", target_is_directory=True)
    for names in (None, [f"class {at}" for at in range(model.num_classes)]):
        isomax_timm.save_model(model, tmp_path / "link", names)
    assert (tmp_path / "link").is_symlink()
    config = json.loads((tmp_path / "far/m/config.json").read_text())
    assert config["label_names"][0] == "class 0"


@pytest.mark.parametrize("drop_in", [True, False])
def test_the_mode_of_the_head_is_kept(drop_in, tmp_path):
    model = timm.create_model("isomax_test_resnet", num_classes=3, drop_in=drop_in)
    loaded = isomax_timm.load_model(isomax_timm.save_model(model, tmp_path / "m"))
    assert loaded.get_classifier().drop_in is drop_in


@pytest.mark.parametrize("name", ["test_vit", "isomaxplus_test_vit"])
def test_a_folder_is_a_source_of_weights_for_other_uses(name, tmp_path):
    """Without classes, for features, at another input size: as timm adapts linear models."""
    model = timm.create_model(name, num_classes=3).eval()
    folder = isomax_timm.save_model(model, tmp_path / "m")

    def load(**kwargs):
        return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()

    images = torch.randn(2, 3, 160, 160)
    bare = load(num_classes=0)
    assert torch.equal(bare.forward_features(images), model.forward_features(images))
    bare.reset_classifier(4)
    assert type(bare.get_classifier()) is type(model.get_classifier())
    features = load(features_only=True)(images)
    assert torch.equal(features[-1], model.forward_intermediates(images)[1][-1])
    smaller = load(img_size=96)
    assert smaller(images[:, :, :96, :96]).shape == (2, 3)
    assert torch.equal(smaller.get_classifier().weight, model.get_classifier().weight)


def test_what_timm_saves_is_a_folder_too(model, tmp_path):
    save_for_hf(model, tmp_path / "m", safe_serialization=True)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(isomax_timm.load_model(tmp_path / "m")(images), model(images))


def test_a_folder_of_a_model_without_classes(tmp_path):
    bare = timm.create_model("dismax_test_resnet", num_classes=0).eval()
    loaded = isomax_timm.load_model(isomax_timm.save_model(bare, tmp_path / "m"))
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(loaded(images), bare(images))
    assert isomax_timm.head_of(loaded) == "dismax"


@pytest.mark.parametrize("name", ["softmax_resnet18", "isomaxplus_resnet18"])
def test_small_image_stems_are_built_again(name, tmp_path):
    model = timm.create_model(name, num_classes=3, small_images=True).eval()
    loaded = isomax_timm.load_model(isomax_timm.save_model(model, tmp_path / "m"))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(ValueError, match="use the model's forward_intermediates"):
        timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, features_only=True)


def test_a_linear_model_is_a_model_folder_too(tmp_path):
    model = timm.create_model("test_vit", num_classes=3).eval()
    loaded = isomax_timm.load_model(isomax_timm.save_model(model, tmp_path / "m"))
    assert isomax_timm.head_of(loaded) == "softmax"
    assert isomax_timm.load_calibration(tmp_path / "m") is None


def test_saving_again_replaces_and_a_failure_leaves_the_old(model, tmp_path, monkeypatch):
    folder = isomax_timm.save_model(model, tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.get_classifier().prototypes.add_(1)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("isomax_adapters.timm.folder.save_config_for_hf", full_disk)
        with pytest.raises(OSError, match="No space left"):
            isomax_timm.save_model(model, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    isomax_timm.save_model(model, folder)
    assert (folder / "model.safetensors").read_bytes() != before


def test_nothing_is_overwritten_that_is_no_model_folder(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(isomax_timm.ModelFolderError, match="not a model folder"):
        isomax_timm.save_model(model, tmp_path)
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        isomax_timm.save_model(model, tmp_path / "m", ["a", "b"])


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _replace_by_pickle(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _in_config(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return damage


def _not_a_number(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["bn1.weight"][3] = float("nan")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "damaged"),
        (_replace_by_pickle, "no model.safetensors"),
        (_not_a_number, "model.safetensors has NaN or infinity in bn1.weight"),
        (_in_config(architecture="resnet_of_doom"), "resnet_of_doom"),
        (
            _in_config(architecture="dismax_test_vit"),
            "fit dismax_test_vit: .*another architecture",
        ),
        (_in_config(model_args={"num_classes": 7}), "is for 3 classes, that of the model .* for 7"),
        (_in_config(model_args={"nonesuch": 1}), "config.json makes no model: .*nonesuch"),
        (_in_config(pretrained_cfg=7), "config.json makes no model: "),
        (_in_config(grey_range=5), "config.json: grey range 5"),
        (_in_config(label_names=["a"]), "config.json has 1 label_names for 3 classes"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ],
)
def test_damaged_folders_are_named(model, tmp_path, damage, message):
    folder = isomax_timm.save_model(model, tmp_path / "m")
    damage(folder)
    with pytest.raises(isomax_timm.ModelFolderError, match=message) as caught:
        isomax_timm.load_model(folder)
    assert "\n" not in str(caught.value)


def test_what_transformers_saves_of_a_timm_model_is_a_model_folder(tmp_path):
    model = timm.create_model("test_resnet", num_classes=3).eval()
    folder = isomax_timm.save_model(model, tmp_path / "m", ["a", "b", "c"])
    tensors = {f"timm_model.{name}": tensor for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _in_config(
        model_type="timm_wrapper",
        architectures=["TimmWrapperForImageClassification"],
        initializer_range=0.02,
        do_pooling=True,
    )(folder)
    images = torch.randn(1, 3, 48, 48)
    assert torch.equal(isomax_timm.load_model(folder)(images), model(images))


def test_a_damaged_calibration_is_named(model, calibration, tmp_path):
    folder = isomax_timm.save_model(model, tmp_path / "m", calibration=calibration)
    (folder / "calibration.json").write_text('{"score": "entropic_score"}')
    with pytest.raises(isomax_timm.ModelFolderError, match=r"calibration\.json is damaged"):
        isomax_timm.load_calibration(folder)
    isomax_timm.save_calibration(calibration, folder)
    some = {name: rows[1:].clone() for name, rows in calibration.outputs.items()}
    safetensors.torch.save_file(some, folder / "calibration.safetensors")
    with pytest.raises(isomax_timm.ModelFolderError, match="49 logits for 50 scores"):
        isomax_timm.load_calibration(folder)
    (folder / "calibration.safetensors").unlink()
    with pytest.raises(
        isomax_timm.ModelFolderError, match=r"calibration\.safetensors cannot be read"
    ):
        isomax_timm.load_calibration(folder)
