"""What a run says of its data and surroundings."""

import json
import shutil
from importlib.metadata import version

import pytest
from PIL import Image

from isomax_evaluation.data.datasets import open_images, open_splits
from isomax_evaluation.data.digests import describe, digest
from isomax_evaluation.output.provenance import git_commit, write_provenance

from ...image_folders import make_folder


def test_a_dataset_is_described(photos, tmp_path):
    images = open_images(str(photos))
    assert describe("test", images) == {
        "name": images.name,
        "split": "test",
        "digest": digest(images),
        "size": 120,
        "classes": 3,
        "source": str(photos),
    }
    splits = open_splits("digits")
    train, test = splits.train, splits.test
    write_provenance(tmp_path, [describe("train", train), describe("test", test)])
    content = json.loads((tmp_path / "provenance.json").read_text())
    assert [entry["size"] for entry in content["datasets"]] == [len(train), len(test)]
    assert content["versions"]["timm"] == version("timm")


@pytest.mark.parametrize("change", ["nothing", "place", "file", "name", "label", "part", "pixels"])
def test_the_digest_changes_with_the_data(tmp_path, change):
    place = make_folder(tmp_path / "a", ("ash", "birch"), 6)
    before = digest(open_images(str(place)))
    images = open_images(str(place))
    if change == "place":
        images = open_images(str(shutil.move(place, tmp_path / "b")))
    elif change == "file":
        (place / "ash" / "000.jpg").unlink()
        images = open_images(str(place))
    elif change == "name":
        (place / "ash" / "000.jpg").rename(place / "ash" / "a.jpg")
        images = open_images(str(place))
    elif change == "label":
        images.labels[0] = 1
    elif change == "part":
        images = images.take([0, 1, 2])
    elif change == "pixels":
        path = place / "ash" / "000.jpg"
        size = path.stat().st_size
        Image.new("RGB", (24, 24)).save(path)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        assert path.stat().st_size == size
        images = open_images(str(place))
    assert (digest(images) == before) == (change in ("nothing", "place"))


def test_no_commit_outside_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
