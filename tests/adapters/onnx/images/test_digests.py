import builtins
import os
import shutil

import numpy as np
import pytest

from isomax_adapters.onnx.images import content_digest, listing_digest, scan, shared_files
from isomax_adapters.onnx.images import digests as module

from ....image_folders import make_folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "photos", ("a", "b"), 4)


def test_a_digest_does_not_depend_on_where_the_folder_lies(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "moved")
    os.symlink(folder, tmp_path / "link")
    listings = [scan(path).train for path in ("photos", "./photos/", folder, "moved", "link")]
    assert len({listing_digest(listing) for listing in listings}) == 1
    assert len({content_digest(listing) for listing in listings}) == 1
    shuffled = listings[0].take(np.random.default_rng(0).permutation(8))
    assert listing_digest(shuffled) == listing_digest(listings[0])
    assert content_digest(shuffled) == content_digest(listings[0])


def _relabel(folder):
    (folder / "a/000.jpg").rename(folder / "b/moved.jpg")


def _add(folder):
    shutil.copy(folder / "a/000.jpg", folder / "a/new.jpg")


def _replace(folder):
    shutil.copy(folder / "b/000.jpg", folder / "a/000.jpg")


def _swap_labels(folder):
    (folder / "a").rename(folder / "c")
    (folder / "b").rename(folder / "a")
    (folder / "c").rename(folder / "b")


@pytest.mark.parametrize("change", [_relabel, _add, _replace, _swap_labels])
def test_a_change_shows(folder, change):
    before = scan(folder).train
    digests = listing_digest(before), content_digest(before)
    change(folder)
    after = scan(folder).train
    assert listing_digest(after) != digests[0]
    assert content_digest(after) != digests[1]


def test_contents_and_groups_show_where_names_and_sizes_do_not(folder):
    listing = scan(folder).train
    digests = listing_digest(listing), content_digest(listing)
    path = folder / "a/000.jpg"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert listing_digest(listing) == digests[0]
    assert content_digest(listing) != digests[1]
    assert listing_digest(listing.grouped_by_prefix(2)) != digests[0]


def test_shared_files_are_found_by_content(tmp_path, monkeypatch):
    make_folder(tmp_path / "train", ("a", "b"), 20)
    make_folder(tmp_path / "test", ("a", "b"), 20, seed=1)
    train, test = scan(tmp_path).train, scan(tmp_path).test
    assert shared_files(train, test) == []
    shutil.copy(tmp_path / "train/a/003.jpg", tmp_path / "test/b/other name.jpg")
    long = b"x" * 10_000
    for name, end in (("train/a/l.png", b"1"), ("test/a/l.png", b"2"), ("test/a/m.png", b"1")):
        (tmp_path / name).write_bytes(long + end)
    read, original = [], builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda path, *rest: read.append(str(path)) or original(path, *rest)
    )
    scanned = scan(tmp_path)
    shared = shared_files(scanned.train, scanned.test)
    assert [[os.path.relpath(path, tmp_path) for path in pair] for pair in shared] == [
        ["train/a/l.png", "test/a/m.png"],
        ["train/a/003.jpg", "test/b/other name.jpg"],
    ]
    sizes = {os.path.getsize(path) for path in scanned.train.paths}
    alike = {path for path in scanned.test.paths if os.path.getsize(path) in sizes}
    assert {path for path in read if "test" in os.path.relpath(path, tmp_path)} == alike
    monkeypatch.setattr(module, "_BEGINNING", 10)
    assert shared_files(scanned.train, scanned.test) == shared
