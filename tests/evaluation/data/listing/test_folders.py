"""Every file is in a split and a class, or named as left out; the same on every machine."""

import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isomax_evaluation.data.listing.files import find_images
from isomax_evaluation.data.listing.folders import scan, scan_unlabelled

from .trees import labelled, make_tree

NAMES = st.sampled_from(["a", "A", "b", "B b", "1", "01", "001", "10", "2", "é", "digits", "tests"])
FILES = st.sampled_from(
    [
        "1.png",
        "1.PNG",
        "01.jpg",
        "1.Tif",
        "x.webp",
        "n.pgm",
        "a.b.bmp",
        "i.txt",
        "k",
        "v.avif",
        "._1.png",
    ]
)
INSIDE = st.lists(NAMES, max_size=2).map("/".join)
CLASSES = st.dictionaries(NAMES, st.sets(st.tuples(INSIDE, FILES), max_size=6), min_size=1)
LAYOUTS = st.sampled_from(
    [
        {"all": ""},
        {"train": "train", "test": "test"},
        {"train": "Train", "test": "TEST"},
        {"train": "training", "val": "valid", "test": "testing"},
        {"train": "train", "val": "validation"},
        {"train": "TRAINING", "val": "Val", "test": "Eval"},
        {"train": "train"},
    ]
)
TAKEN = (".png", ".jpg", ".tif", ".webp", ".pgm", ".bmp")


def is_image(name):
    return name.lower().endswith(TAKEN) and not name.startswith(".")


def joined(*parts):
    return "/".join(part for part in parts if part)


@given(LAYOUTS, CLASSES, st.sets(FILES, max_size=3))
@settings(deadline=None, max_examples=60)
def test_every_file_is_listed_under_its_class_or_left_out(tmp_path_factory, layout, classes, loose):
    files = {
        split: {
            joined(folder, label, inside, file): label
            for label, within in classes.items()
            for inside, file in within
        }
        for split, folder in layout.items()
    }
    beside = {split: [joined(folder, file) for file in loose] for split, folder in layout.items()}
    filled = {label for label, within in classes.items() if any(is_image(f) for _, f in within)}
    root = tmp_path_factory.mktemp("data")
    for split, folder in layout.items():
        make_tree(root, *files[split], *beside[split])
        for label in classes:
            (root / folder / label).mkdir(exist_ok=True, parents=True)
    if not filled:
        with pytest.raises(ValueError, match="has no images in class folders"):
            scan(root)
        return
    scanned = scan(root)
    assert set(scanned.splits) == set(layout)
    for split, listing in scanned.splits.items():
        assert set(listing.class_names) == filled
        assert labelled(listing) == {
            name: label for name, label in files[split].items() if is_image(name.split("/")[-1])
        }
        left_out = len(files[split]) + len(beside[split]) - len(listing)
        empty = len(classes) - len(filled)
        assert sum(reason.count for reason in listing.left_out) == left_out + empty
        # what scores and calibrates a folder reads the same images, and loose ones
        loose_images = {name for name in beside[split] if is_image(name.split("/")[-1])}
        expected = set(listing.names) | loose_images
        top = root / layout[split]
        assert {os.path.relpath(path, root) for path in find_images([top])} == expected
        if set(layout) == {"all"}:
            assert set(scan_unlabelled(root).names) == expected


AWKWARD = ["A", "a", "01", "1", "10", "2", "001", "b [old]", "É", "é", "Z", "ß", "0x", "x" * 90]


def test_the_order_is_total(tmp_path, monkeypatch):
    """Whatever order the file system gives, whatever the hash seed: names that differ only in case
    or in leading zeros do not change places."""
    names = [f"{label}/{file}.png" for label in AWKWARD for file in ("1", "01", "a", "A", "s/1")]
    make_tree(tmp_path, *names)
    first = scan(tmp_path)
    assert first.train.class_names == (
        *("0x", "001", "01", "1", "2", "10", "A", "a", "b [old]", "x" * 90, "Z", "É", "ß", "é"),
    )
    original = os.walk

    def walk(*given, **named):
        for folder, folders, files in original(*given, **named):
            random.shuffle(folders)
            random.shuffle(files)
            yield folder, folders, files

    monkeypatch.setattr(os, "walk", walk)
    for seed in range(3):
        random.seed(seed)
        again = scan(tmp_path)
        assert again.train.names == first.train.names
        assert again.train.labels.tolist() == first.train.labels.tolist()
    code = "from isomax_evaluation.data.listing.folders import scan\n"
    code += f"print(scan({str(tmp_path)!r}).train.names)"
    for seed in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONUTF8": "1", "LC_ALL": "C"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
        assert run.stdout.strip() == repr(first.train.names)


def test_one_of_val_and_test_is_tested_and_both_are_used(tmp_path):
    for folder in ("val", "test"):
        make_tree(tmp_path / folder, "train/a/1.png", "train/b/1.png", f"{folder}/a/2.png")
        scanned = scan(tmp_path / folder)
        assert labelled(scanned.test) == {f"{folder}/a/2.png": "a"}
        assert scanned.held_out is None
        assert scanned.test.counts().tolist() == [1, 0]
    both = make_tree(tmp_path, *(f"both/{s}/a/{s}.png" for s in ("train", "val", "test"))) / "both"
    scanned = scan(both)
    assert [x.names for x in (scanned.train, scanned.held_out, scanned.test)] == [
        ("train/a/train.png",),
        ("val/a/val.png",),
        ("test/a/test.png",),
    ]
    alone = scan(make_tree(tmp_path / "alone", "train/a/1.png", "train/b/1.png"))
    assert (len(alone.train), alone.test, alone.held_out) == (2, None, None)


def test_a_class_called_train_is_a_class(tmp_path):
    make_tree(tmp_path, "car/1.png", "plane/deep/1.png", "train/1.png")
    scanned = scan(tmp_path)
    assert set(scanned.splits) == {"all"}
    assert scanned.train.class_names == ("car", "plane", "train")


def test_classes_may_speak_of_splits(tmp_path):
    names = ("train station/1.png", "test tube/1.png", *(f"{at}/1.png" for at in range(3)))
    assert len(scan(make_tree(tmp_path / "folds", "fold 1/1.png", "kin/1.png")).splits) == 1
    tmp_path /= "splits"
    assert len(scan(make_tree(tmp_path, *names)).train.class_names) == 5


def test_unlabelled_images_are_those_of_the_test_split_or_all(tmp_path):
    make_tree(tmp_path, "a/train/x/1.png", "a/val/y/2.png", "b/1.png", "b/c/2.PNG", "b/c/k.txt")
    make_tree(tmp_path, "c/test/1.png", "c/val/x/2.png", "d/train/x/1.png", "e/k.txt")
    found = {name: scan_unlabelled(tmp_path / name) for name in "abcd"}
    assert {name: listing.names for name, listing in found.items()} == {
        "a": ("val/y/2.png",),
        "b": ("1.png", "c/2.PNG"),
        "c": ("test/1.png",),
        "d": ("train/x/1.png",),
    }
    assert str(found["b"]) == "2 images; left out: file ending in .txt: 1 (c/k.txt)"
    assert found["b"].labels.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="e/ has no images; left out"):
        scan_unlabelled(tmp_path / "e")
    with pytest.raises(ValueError, match="there is no folder"):
        scan_unlabelled(tmp_path / "f")


def test_what_is_beside_splits_is_left_out_by_name(tmp_path):
    make_tree(
        tmp_path,
        *("train/a/1.png", "test/a/1.png", "samples/1.png", "docs/notes.txt", "README.md"),
        *("x.png", ".git/1.png"),
    )
    scanned = scan(tmp_path)
    assert set(scanned.splits) == {"train", "test"}
    assert {reason.reason: reason.examples for reason in scanned.left_out} == {
        "folder beside the splits": ("samples/",),
        "folder without images": ("docs/",),
        "name that begins with '.', '@' or '__'": (".git/",),
        "file ending in .md": ("README.md",),
        "image in no class folder": ("x.png",),
    }


def test_a_test_set_without_labels_is_left_out_by_name(tmp_path):
    make_tree(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png", "valid/k.txt")
    scanned = scan(tmp_path)
    assert set(scanned.splits) == {"train"}
    (reason,) = scanned.left_out
    assert reason.examples == ("valid/", "test/")


def test_links_to_folders_above_are_met_once(tmp_path):
    links = [
        ("train/a/all", "."),
        ("train/up", "train"),
        ("test/b/x", "train/b"),
        ("train/c", "far"),
    ]
    names = [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(4)]
    make_tree(tmp_path, *names, "far/1.png", links=links)
    scanned = scan(tmp_path)
    assert labelled(scanned.train) == {
        **{name: name[6] for name in names if name.startswith("train")},
        "train/c/1.png": "c",
    }
    assert labelled(scanned.test) == {n: n[5] for n in names if n.startswith("test")}
    (reason,) = scanned.train.left_out
    assert (reason.reason, reason.count) == ("folder met before, by way of a link", 2)


@pytest.mark.parametrize(
    ("names", "links", "message"),
    [
        (
            ["train/1.png", "test/1.png"],
            [],
            "train has no images in class folders; left out: image",
        ),
        (
            ["1.png", "2.png"],
            [],
            "no images in class folders; left out: image in no class folder: 2",
        ),
        (["a/1.avif"], [], r"file ending in \.avif, to be saved as PNG .*files that are read end"),
        (["a/1", "a/2"], [], r"left out: file without an ending: 2 \(a/1, a/2\)"),
        (["test/1.png"], [], "test has no images in class folders"),
        (["train/a/1.avif", "test/a/1.png"], [], r"train has no images .* \.avif, .*: 1"),
        (["train/x/1.png", "car/1.png"], [], "has train/ beside car/: splits, or classes"),
        (["train_set/a/1.png", "test_set/a/1.png"], [], "would be classes, and have the names of"),
        (["seg_train/a/1.png", "seg_test/a/1.png", "seg_pred/1.png"], [], "the names of splits"),
        (
            ["train/train/a/1.png", "test/test/a/1.png"],
            [],
            "train/train/ in .* the name of a split",
        ),
        (["Fold1/a/1.png", "Fold2/a/1.png"], [], "Fold1/, Fold2/ in .* have the names of folds"),
        (["val/a/1.png", "test/a/1.png", "c/1.png"], [], "has test/, val/ beside c/: splits"),
        (
            ["train/a/1.png", "val/a/1.png", "valid/a/1.png"],
            [],
            "has val/ and valid/, both the val",
        ),
        (["Train/a/1.png", "train/a/1.png"], [], "has Train/ and train/, both the train split"),
        (["data/train/a/1.png", "data/test/a/1.png"], [], "data/ in .* have test/, train/"),
        (["x/train/a/1.png", "y/test/a/1.png"], [], "x/, y/ in .* have train/ in them"),
        (["train/a/1.png", "val/images/1.png"], [], "val split .* without training images: images"),
        (["a/1.png"], [("b", "a")], "a/ and b/ in .* are one folder, by way of a link"),
        (["train/a/1.png"], [("test/a", "train/a")], "train/a/ and test/a/ in .* are one folder"),
        (["all/a/1.png"], [("train", "all"), ("test", "all")], "test/ and train/ in .* are one"),
        (["caf\u00e9/1.png", "cafe\u0301/1.png"], [], "the same name to the eye"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_way_out(tmp_path, names, links, message):
    with pytest.raises(ValueError, match=message) as raised:
        scan(make_tree(tmp_path, *names, links=links))
    assert "\n" not in str(raised.value)


def test_accents_are_one_class_in_both_spellings_of_unicode(tmp_path):
    scanned = scan(make_tree(tmp_path, "train/caf\u00e9/1.png", "test/cafe\u0301/2.png"))
    assert scanned.test.class_names == ("caf\u00e9",)


def test_names_that_are_no_text_are_refused_as_classes_only(tmp_path):
    make_tree(tmp_path / "one", "a/" + os.fsdecode(b"caf\xe9.png"))
    assert len(scan(tmp_path / "one").train) == 1
    make_tree(tmp_path / "two", os.fsdecode(b"caf\xe9") + "/1.png")
    with pytest.raises(ValueError, match="which is no text"):
        scan(tmp_path / "two")


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    make_tree(tmp_path, "a/x/1.png", "b/1.png")
    original = os.scandir

    def scandir(path):
        if str(path).endswith("x"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match="a/x cannot be listed: Permission denied"):
        scan(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        scan(tmp_path / "nowhere")


def test_a_class_map_gives_positions_and_leaves_others_out(tmp_path):
    make_tree(tmp_path, "a/1.png", "b/1.png", "c/1.png")
    listing = scan(tmp_path, {"c": 0, "a": 1, "d": 2}).train
    assert labelled(listing) == {"a/1.png": "a", "c/1.png": "c"}
    assert listing.class_names == ("c", "a", "d")
    assert listing.counts().tolist() == [1, 1, 0]
    assert "class map does not name: 1 (b/)" in str(listing)
    with pytest.raises(ValueError, match=r"positions \[0, 2\]; expected each of 0 to 1"):
        scan(tmp_path, {"a": 0, "b": 2})


def test_one_line_says_what_was_read(tmp_path):
    make_tree(tmp_path, *(f"train/a/{i}.png" for i in range(1200)), "train/b/1.png", "train/k.txt")
    make_tree(tmp_path, "test/b/1.png")
    assert str(scan(tmp_path)) == (
        "train: 1,201 images, 2 classes, smallest 'b' with 1; left out: file ending in .txt: 1 "
        "(train/k.txt)\n"
        "test: 1 image, 1 class, smallest 'b' with 1"
    )


def test_names_that_are_no_text_or_of_several_lines_can_be_printed(tmp_path):
    make_tree(tmp_path, "a/1.png", "a/x\ny", "a/" + os.fsdecode(b"\xe9"), "b [old]/1.png")
    text = str(scan(tmp_path))
    assert text.encode().decode().count("\n") == 0
    assert r"(a/x\ny, a/\udce9)" in text


def test_groups_are_the_beginnings_of_file_names(tmp_path):
    make_tree(tmp_path, "a/p1_1.png", "b/x/p1_2.png", "b/p2_1.png", "b/p.png")
    listing = scan(tmp_path).train.grouped_by_prefix(2)
    groups = dict(zip(listing.names, listing.groups, strict=True))
    assert groups == {"a/p1_1.png": "p1", "b/x/p1_2.png": "p1", "b/p2_1.png": "p2", "b/p.png": "p."}
    assert listing.take([1]).groups == (listing.groups[1],)
    assert "4 images, 2 classes, smallest 'a' with 1, 3 groups" in str(listing)
    with pytest.raises(ValueError, match="first 0 characters"):
        listing.grouped_by_prefix(0)
