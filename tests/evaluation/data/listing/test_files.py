import os

import pytest
from PIL import Image

from isomax_adapters.runtime.decoding import IMAGE_FORMATS
from isomax_evaluation.data.listing.files import IMAGE_SUFFIXES, existing_folder, find_images

from .trees import make_tree


def found(root, given=None):
    return [os.path.relpath(path, root) for path in find_images([given or root])]


def test_every_ending_of_the_formats_is_an_image_in_any_case(tmp_path):
    endings = [e for e, kind in Image.registered_extensions().items() if kind in IMAGE_FORMATS]
    assert set(endings) - {".pfm"} == IMAGE_SUFFIXES  # floats, which have no range
    names = [f"{at}{ending}" for at, ending in enumerate(endings)]
    names += [f"x{at}{ending.upper()}" for at, ending in enumerate(endings)]
    make_tree(tmp_path, *names, "a.avif", "b.txt", "c", "d.2020", "e.jpg.part")
    assert set(found(tmp_path)) == {n for n in names if not n.lower().endswith(".pfm")}


def test_what_is_left_out_is_said_with_the_reason(tmp_path):
    make_tree(tmp_path, "a/1.png", "a/2.HEIC", "b.avif", "c", "d.txt", "e.2020", ".f.png", "g/@h/i")
    left_out = {}
    assert list(find_images([tmp_path], lambda why, path: left_out.setdefault(path, why)))
    assert {os.path.relpath(path, tmp_path): why for path, why in left_out.items()} == {
        "a/2.HEIC": "file ending in .heic, to be saved as PNG or JPEG",
        "b.avif": "file ending in .avif, to be saved as PNG or JPEG",
        "c": "file without an ending",
        "d.txt": "file ending in .txt",
        "e.2020": "file without an ending",
        ".f.png": "name that begins with '.', '@' or '__'",
        "g/@h": "name that begins with '.', '@' or '__'",
    }


def test_names_of_systems_are_skipped_unless_given(tmp_path):
    names = ("._1.png", ".ipynb_checkpoints/1.png", "@eaDir/1.png", "__MACOSX/a/1.png", "@x.png")
    make_tree(tmp_path, "a/1.png", *(f"a/{name}" for name in names), *names)
    assert found(tmp_path) == ["a/1.png"]
    assert found(tmp_path, tmp_path / "@x.png") == ["@x.png"]
    assert found(tmp_path, tmp_path / "__MACOSX") == ["__MACOSX/a/1.png"]


def test_real_folders_go_before_links(tmp_path):
    make_tree(tmp_path, "b/1.png", "c.png", links=[("a", "b"), ("b/up", ".")])
    assert found(tmp_path) == ["c.png", "b/1.png"]


def test_a_folder_that_cannot_be_listed_is_a_row(tmp_path, monkeypatch):
    make_tree(tmp_path, "a/1.png", "b/1.png")
    original = os.scandir

    def scandir(path):
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert found(tmp_path) == ["b/1.png", "a"]


def test_the_home_folder_is_expanded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make_tree(tmp_path, "photos/1.png")
    assert list(find_images(["~/photos"])) == [str(tmp_path / "photos/1.png")]
    assert existing_folder("~/photos") == str(tmp_path / "photos")
    make_tree(tmp_path, "~/photos/2.png")  # a folder of that name goes before
    assert list(find_images(["~/photos"])) == ["~/photos/2.png"]


@pytest.mark.parametrize("name", ["digits", "CIFAR10", "train"])
def test_an_existing_folder_goes_before_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert existing_folder(name) is None
    make_tree(tmp_path, f"{name}/a/1.png")
    assert existing_folder(name) == name
