from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pytorch_ood.dataset.img import GaussianNoise

from isomax_adapters.timm.sources import SourceError, open_model
from isomax_evaluation import data
from isomax_evaluation.cli.terminal import Bars, path_of
from isomax_evaluation.data.reading import read_once
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.data.torch_datasets import from_dataset
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.progress import warn

from ...image_folders import make_folder


def test_digits_are_split_by_class_and_known_from_held_out():
    splits = data.open_splits("digits")
    train, test = splits.train, splits.test
    held_out = data.open_images("digits-held-out")
    assert len(train) + len(test) + len(held_out) == 1797
    assert not set(train.indices) & set(test.indices)
    assert train.class_names == test.class_names == tuple("0123456")
    assert set(held_out.class_names) == set("789")
    assert set(held_out.as_ood().labels) == {-1}
    assert train.image(0).mode == "RGB"


def test_noise_is_the_same_at_every_access():
    noise = data.open_images("uniform-noise")
    assert np.array_equal(noise.image(3), noise.image(3))
    assert not np.array_equal(noise.image(3), noise.image(4))
    assert set(noise.labels) == {-1}


def test_a_folder_without_splits_is_split_the_same_way_every_time(photos):
    splits = data.open_splits(str(photos))
    train, test = splits.train, splits.test
    again = data.open_splits(str(photos)).test
    assert (len(train), len(test)) == (96, 24)
    assert np.array_equal(test.indices, again.indices)
    assert train.class_names == ("ash", "birch", "cedar")
    assert np.bincount(test.labels).tolist() == [8, 8, 8]


@pytest.mark.parametrize("train_name", ["train", "Training"])
@pytest.mark.parametrize("test_name", ["test", "val", "valid", "Validation", "TESTING", "Eval"])
def test_a_folder_with_splits_keeps_them(tmp_path, monkeypatch, train_name, test_name):
    """Under the home folder too, which a shell leaves to the program in ``--data=~/x``."""
    make_folder(tmp_path / "x" / train_name, ("a", "b"), 2)
    make_folder(tmp_path / "x" / test_name, ("a", "b"), 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path / "x"), "~/x"):
        splits = data.open_splits(name)
        assert splits.train.name == "x"
        assert splits.held_out is None
        for images, split, count in (
            (splits.train, train_name, 4),
            (splits.test, test_name, 2),
        ):
            names = [images.name_of(at) for at in range(len(images))]
            assert len(names) == count
            assert all(one.startswith(f"{tmp_path}/x/{split}/") for one in names)


def test_train_alone_is_split_and_never_tested_on_itself(tmp_path):
    make_folder(tmp_path / "train", ("a", "b"), 10)
    splits = data.open_splits(str(tmp_path))
    # what is called "train" is a part of something that has a name
    assert data.open_splits(str(tmp_path / "train")).train.name == splits.train.name
    assert data.open_images(str(tmp_path / "train")).name == tmp_path.name
    assert (len(splits.train), len(splits.test)) == (16, 4)
    sets = [{one.name_of(at) for at in range(len(one))} for one in (splits.train, splits.test)]
    assert len(set().union(*sets)) == 20
    assert splits.found[-1] == "test: 4 of these, drawn by class"


def test_layouts_of_data_sets_that_are_shared(tmp_path):
    """Tiny ImageNet's, with a folder between class and images; years below classes."""
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            make_folder(tmp_path / split / name, ("images", "2019"), 2)
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    (tmp_path / "train/n01/images/._000.jpg").touch()
    splits = data.open_splits(str(tmp_path))
    assert splits.train.class_names == ("n01", "n02")
    assert (len(splits.train), len(splits.test)) == (8, 8)
    assert "name that begins with '.', '@' or '__': 2" in splits.found[0]


@pytest.mark.parametrize("name", ["digits", "CIFAR10", "gaussian-noise"])
def test_a_folder_goes_before_a_data_set_of_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / name, ("a", "b"), 5)
    assert data.open_splits(name).train.class_names == ("a", "b")
    assert len(data.open_images(name)) == 10


def test_a_name_that_begins_with_a_tilde_is_no_home_folder(tmp_path, monkeypatch):
    make_folder(tmp_path / "~photos", ("a", "b"), 5)
    monkeypatch.chdir(tmp_path)
    for name in ("./~photos", "~photos"):
        assert len(data.open_splits(name).train) == 8
    assert path_of("./~out") == Path("~out")
    (tmp_path / "~run").mkdir()
    with pytest.raises(SourceError, match="~run holds no model: expected config"):
        open_model("./~run")


def test_labels_from_a_table_with_splits_groups_and_a_class_map(tmp_path):
    make_folder(tmp_path / "pictures", ("a", "b"), 10)
    rows = ["file;class;set;camera"]
    for at in range(20):
        path = f"pictures/{'ab'[at // 10]}/{at % 10:03}.jpg"
        rows.append(f"{path};{('cat', 'dog')[at % 2]};{('train', 'test')[at % 5 == 4]};c{at % 5}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    splits = data.open_splits(
        str(tmp_path / "labels.csv"),
        reading=Reading(group_by="camera", class_map=str(tmp_path / "classes.txt")),
    )
    assert splits.train.class_names == ("dog", "cat")
    assert (len(splits.train), len(splits.test)) == (16, 4)
    assert set(splits.train.groups) == {"c0", "c1", "c2", "c3"}
    assert set(splits.test.groups) == {"c4"}
    at = [splits.train.name_of(i)[-9:] for i in range(16)].index("a/001.jpg")
    assert splits.train.class_of(at) == "dog"
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "pictures/none.jpg;cat;train;c0"]))
    (tmp_path / "kaggle.csv").write_text("id,breed\npictures/a/000.jpg,cat\n")
    with pytest.raises(InputError, match=r"a path may be called path, .*, a label label, "):
        data.open_splits(str(tmp_path / "kaggle.csv"))
    with pytest.raises(InputError, match=r"line 22: there is no file pictures/none\.jpg"):
        data.open_splits(str(tmp_path / "labels.csv"))


def test_a_class_map_of_other_classes_is_said_to_be_that(tmp_path):
    make_folder(tmp_path / "x", ("a", "b"), 2)
    (tmp_path / "map.txt").write_text("dog\ncat\n")
    rows = [f"{c}/00{at}.jpg,{c}" for c in "ab" for at in range(2)]
    (tmp_path / "x/labels.csv").write_text("\n".join(["path,label", *rows]))
    for name in ("x", "x/labels.csv"):
        with pytest.raises(InputError, match="the class map names dog; cat: give that of these"):
            data.open_splits(str(tmp_path / name), Reading(class_map=str(tmp_path / "map.txt")))


def test_given_splits_respect_groups_too(tmp_path):
    for split, numbers in (("train", (1, 2)), ("val", (2, 3)), ("test", (4,))):
        for number in numbers:
            for name in "ab":
                path = tmp_path / split / name / f"p{number}_{split}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8)).save(path)
    assert len(data.open_splits(str(tmp_path)).train) == 4
    with pytest.raises(InputError, match="1 groups are in both train and val: p2; keep the"):
        data.open_splits(str(tmp_path), reading=Reading(group_by="2"))


def test_sizes_and_modes_may_differ(tmp_path):
    for number, mode in enumerate(("L", "RGBA", "CMYK", "P")):
        image = Image.new(mode, (5 + number, 9))
        path = tmp_path / "a" / f"{number}.{'png' if mode != 'CMYK' else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    images = data.open_images(str(tmp_path))
    assert {images.image(i).mode for i in range(4)} == {"RGB"}


def test_unreadable_files_are_found_with_the_reason(tmp_path):
    make_folder(tmp_path, ("a", "b"), 3)
    good = (tmp_path / "a" / "000.jpg").read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "b" / "empty.jpg").touch()
    (tmp_path / "b" / "text.png").write_text("hello")
    done = []
    images = data.open_images(str(tmp_path))
    bad, *_ = read_once(images, 2, done.append)
    assert sum(done) == 9
    names = {images.name_of(position).rpartition("/")[2] for position in bad}
    assert names == {"cut.jpg", "empty.jpg", "text.png"}
    assert all(bad.values())


def test_limit_per_class():
    train = data.open_splits("digits").train
    limited = data.limit_per_class(train, 10)
    assert np.bincount(limited.labels).tolist() == [10] * 7


def test_torchvision_datasets_by_name(tmp_path):
    with pytest.raises(InputError, match="cannot open dataset 'torch/mnist'"):
        data.open_images("torch/mnist", root=str(tmp_path))
    with pytest.raises(InputError, match="cannot open dataset 'torch/nonesuch'"):
        data.open_images("torch/nonesuch", root=str(tmp_path))
    # as torchvision spells them, idx files and all
    write_mnist(tmp_path / "MNIST" / "raw")
    splits = data.open_splits("MNIST", reading=Reading(data_root=str(tmp_path)))
    train, test = splits.train, splits.test
    assert (len(train), len(test), len(train.class_names)) == (30, 20, 10)
    assert train.labels.tolist() == [index % 10 for index in range(30)]
    assert train.image(3).size == (28, 28)
    with pytest.raises(InputError, match="FakeData has no splits"):
        data.open_images("FakeData")


@pytest.mark.parametrize("name", ["KittiFlow", "CelebA"])
def test_data_sets_without_a_class_for_each_image_are_not_offered(name):
    assert name not in data.named_sets()
    assert "SVHN" in data.named_sets()
    with pytest.raises(InputError, match=f"torchvision's {name} has no class for each image"):
        data.open_images(name)


def test_pytorch_oods_datasets_that_take_more_than_a_folder_say_so(tmp_path):
    with pytest.raises(InputError, match=r"GaussianNoise takes more than a folder \(length\)"):
        data.open_images("GaussianNoise", root=str(tmp_path))


def test_noise_of_pytorch_ood_stays_as_it_was_drawn():
    noise = from_dataset(GaussianNoise(3, size=(8, 8, 3)), "noise", np.full(3, -1), ())
    first, again = (np.asarray(noise.image(1)) for _ in range(2))
    assert (first == again).all()


def write_mnist(folder):
    """A few images in MNIST's own format."""
    folder.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = np.repeat(labels, 28 * 28)
        for kind, head, values in (
            ("images-idx3", [0x803, count, 28, 28], pixels),
            ("labels-idx1", [0x801, count], labels),
        ):
            header = np.array(head, dtype=">i4").tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + values.tobytes())


@pytest.mark.parametrize(
    ("name", "message"),
    [("/no/such/folder", "no dataset or folder"), ("didgits", "'digits', 'gaussian-noise'")],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        data.open_images(name)


def test_folders_that_cannot_be_classified_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        data.open_images(str(tmp_path / "empty"))
    make_folder(tmp_path / "one", ("only",), 4)
    with pytest.raises(InputError, match=r"one has one class \(only\)"):
        data.open_splits(str(tmp_path / "one"))
    make_folder(tmp_path / "differ" / "train", ("a", "b"), 2)
    make_folder(tmp_path / "differ" / "test", ("a", "c"), 2)
    with pytest.raises(InputError, match="classes without training images: c"):
        data.open_splits(str(tmp_path / "differ"))
    make_folder(tmp_path / "single", ("a", "b"), 1)
    with pytest.raises(InputError, match="each class has one image or one group only"):
        data.open_splits(str(tmp_path / "single"))


def test_names_with_brackets_are_said_as_they_are(tmp_path, capfd):
    """Rich takes brackets for markup."""
    root = make_folder(tmp_path / "set [old]", ("a", "b [red]"), 4)
    (root / "b [red]" / "cut [2].jpg").write_bytes(b"no image")
    images = data.open_images(str(root))
    with Bars() as progress:
        data.readable([images], True, 0, progress)
        warn(progress, "classes b [red] and [/] are rare")
    said = capfd.readouterr().err
    assert "cut [2].jpg" in said
    assert "checking set [old]" in said or "checking" not in said
    assert "warning: classes b [red] and [/] are rare" in said
