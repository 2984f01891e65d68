"""The images of a comparison, before any work."""

from pathlib import Path

import pytest
from rich.progress import Progress

from isomax_adapters.runtime.decoding import Decoding
from isomax_evaluation.comparison.sets import open_sets, prepared
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.progress import progress_bar

from ...image_folders import make_folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "known", ("ash", "birch"), 6)
    make_folder(tmp_path / "odd", ("x",), 4, seed=3)
    return tmp_path


def ready(sets, skip=False, progress=None):
    progress = progress or Progress(disable=True)
    reading = Reading(skip_bad_images=skip, workers=0)
    return prepared(sets, None, None, reading, Path("copies.csv"), [Decoding()], progress)


def test_folders_are_known_by_their_whole_path(folders):
    (folders / "b").mkdir()
    for given, odd in (("known", "./odd/"), ("b/../known", str(folders / "odd"))):
        sets = open_sets(given, [("strange", odd)], None, None, Reading())
        assert sets.given == str(folders / "known")
        assert sets.given_ood == [("strange", str(folders / "odd"))]
    sets = open_sets(Path("known"), [(None, "uniform-noise")], None, None, Reading())
    assert sets.given == str(folders / "known")
    assert sets.given_ood == [("uniform-noise", "uniform-noise")]


def test_what_is_left_out_of_ood_sets_is_said(folders, capfd):
    (folders / "odd/x/a.avif").touch()
    (folders / "odd/x/b").touch()
    with progress_bar() as progress:
        ready(open_sets("known", [(None, "odd")], None, None, Reading()), progress=progress)
    said = capfd.readouterr().err
    assert "known, all: 12 images, 2 classes" in said
    assert "odd: 4 images; left out: file ending in .avif, to be saved as PNG or JPEG: 1" in said
    assert "file without an ending: 1 (x/b)" in said


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("odd", "odd has no image that can be read"),
        ("known/birch", "1 of 2 classes of known have no image to train on .*: birch"),
    ],
)
def test_a_set_of_which_skipping_leaves_nothing_is_refused(folders, broken, message):
    for path in (folders / broken).rglob("*.jpg"):
        path.write_bytes(b"no image")
    sets = open_sets("known", [(None, "odd")], None, None, Reading())
    with pytest.raises(InputError, match="do not decode"):
        ready(sets)
    with pytest.raises(InputError, match=message):
        ready(sets, skip=True)
