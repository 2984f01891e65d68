import builtins
import os
import shutil

import pytest

from isomax_evaluation.data.listing import digests as module
from isomax_evaluation.data.listing.digests import shared_files
from isomax_evaluation.data.listing.folders import scan

from ....image_folders import make_folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "photos", ("a", "b"), 4)


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
