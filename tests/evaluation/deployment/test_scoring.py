"""Scores into a file: whole, in order, and continued after an interruption."""

import copy
import csv
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import fields
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from isomax_adapters.runtime.resizing import to_size_of_graph
from isomax_adapters.runtime.scorer import Result, Scorer
from isomax_evaluation.data.datasets import open_images
from isomax_evaluation.data.listing.files import find_images
from isomax_evaluation.deployment.rows import COLUMNS, MEANINGS
from isomax_evaluation.deployment.scoring import Scored, score_to_file
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import read_json, write_json


@pytest.fixture(scope="module")
def scorer(compared):
    return Scorer(compared.output / "model.onnx")


@pytest.fixture
def images(photos, tmp_path):
    """Good files, a bad one in their middle, and a name that is hard to write down."""
    bad, odd = tmp_path / "bad.jpg", tmp_path / 'odd\n"name", ü.jpg'
    bad.write_bytes(b"no image")
    good = sorted(map(str, photos.rglob("*.jpg")))[:40]
    odd.write_bytes(Path(good[0]).read_bytes())
    return [*good[:20], str(bad), str(odd), *good[20:]]


def read(path):
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_one_row_per_input_in_order(scorer, images, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    done = []
    assert score_to_file(scorer, images, out, done.append) == Scored(42, 1, 42, 0, 0)
    assert sum(done) == 42
    rows = read(out)
    assert tuple(rows[0]) == COLUMNS
    assert [row["source"] for row in rows] == images
    assert [bool(row["error"]) for row in rows] == [image.endswith("bad.jpg") for image in images]
    for row, result in zip(rows, scorer.score(images), strict=True):
        if not row["error"]:
            assert float(row["score"]) == pytest.approx(result.score, abs=1e-6)
            assert str(row["is_ood"]) == str(result.is_ood)
            assert float(row["p_value"]) == pytest.approx(result.p_value, abs=0.01)
        else:
            assert row["p_value"] in ("", None)
    assert [path.name for path in tmp_path.glob(".*")] == [f".out{suffix}.run.json"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.55, 0.9, 0.999, 1.0])
def test_a_file_cut_off_anywhere_is_continued(scorer, images, tmp_path, monkeypatch, suffix, share):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    score_to_file(scorer, images, whole, lambda done: None)
    content = whole.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    shutil.copy(tmp_path / f".whole{suffix}.run.json", tmp_path / f".cut{suffix}.run.json")
    computed = []
    original = scorer.stream

    def stream(inputs, batch_size=16, top=0):
        for result in original(inputs, batch_size, top):
            computed.append(result)
            yield result

    monkeypatch.setattr(scorer, "stream", stream)
    found = score_to_file(scorer, images, cut, lambda done: None)
    assert (found.total, found.failed) == (42, 1)
    by_name = [{row["source"]: row["error"] for row in read(path)} for path in (cut, whole)]
    assert by_name[0] == by_name[1]
    assert len(read(cut)) == 42
    # a row or two are computed again, not all
    assert len(computed) <= (1 - share) * 42 + 5


def test_reading_rows_back_takes_no_memory_of_them(scorer, images, tmp_path):
    out = tmp_path / "out.csv"
    score_to_file(scorer, images[:1], out, lambda done: None)
    header, row = out.read_bytes().splitlines(keepends=True)
    rest = row.decode().partition(",")[2]
    rows = [f"{tmp_path}/{number}.jpg,{rest}" for number in range(20_000)]
    out.write_bytes(header + "".join(rows).encode())  # 3 MB
    del rows
    tracemalloc.start()
    try:
        assert score_to_file(scorer, images[1:3], out, lambda done: None).total == 20_002
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_every_column_is_documented():
    results = [field.name for field in fields(Result) if field.name != "top"]
    assert list(MEANINGS) == [*results, "size", "modified_ns"]


def test_a_header_cut_off_anywhere_is_begun_anew(scorer, images, tmp_path):
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    score_to_file(scorer, images[:2], whole, lambda done: None)
    score_to_file(scorer, images[:2], cut, lambda done: None)
    header = whole.read_bytes().splitlines(keepends=True)[0]
    for end in (1, len(header) - 2, len(header) - 1, len(header)):
        cut.write_bytes(header[:end])
        assert score_to_file(scorer, images[:2], cut, lambda done: None).total == 2
        assert [row["source"] for row in read(cut)] == images[:2]
    damaged = header.replace(b"label", b"table")
    cut.write_bytes(damaged)
    with pytest.raises(InputError, match="holds no scores"):
        score_to_file(scorer, images[:2], cut, lambda done: None)
    assert cut.read_bytes() == damaged


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_finished_file_takes_more_inputs_in_any_order(scorer, images, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    score_to_file(scorer, images[5:30], out, lambda done: None)
    before = read(out)
    # the one that failed is tried again, and is still no image
    assert score_to_file(scorer, images[5:30], out, lambda done: None) == Scored(25, 1, 0, 0, 1)
    assert sorted(map(str, read(out))) == sorted(map(str, before))
    done = []
    again = [*images[::-1], images[0]]  # one of them twice
    assert score_to_file(scorer, again, out, done.append) == Scored(42, 1, 17, 0, 1)
    assert sum(done) == 43
    assert sorted(row["source"] for row in read(out)) == sorted(images)
    assert score_to_file(scorer, images[:3], out, lambda done: None).total == 42


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_files_that_appear_change_and_vanish(scorer, photos, tmp_path, suffix):
    """What a job that runs every minute finds."""
    folder, out = tmp_path / "photos", tmp_path / f"out{suffix}"
    shutil.copytree(photos / "ash", folder)

    def run():
        done = score_to_file(scorer, find_images([folder]), out, lambda done: None)
        return done, {os.path.basename(row["source"]): row for row in read(out)}

    first, other, *_, last = sorted(folder.iterdir())
    whole = other.read_bytes()
    other.write_bytes(whole[: len(whole) // 2])  # still being copied
    done, rows = run()
    assert done == Scored(40, 1, 40, 0, 0)
    assert rows[other.name]["error"]
    label = rows[first.name]["label"]
    other.write_bytes(whole)
    shutil.copy(next((photos / "cedar").iterdir()), first)
    shutil.copy(next((photos / "birch").iterdir()), folder / "0new.jpg")
    last.unlink()
    done, rows = run()
    assert done == Scored(41, 0, 1, 2, 0)
    assert len(read(out)) == 41
    assert not rows[other.name]["error"]
    expected = scorer.score(first)[0]
    assert (str(rows[first.name]["label"])) == str(expected.label)
    assert float(rows[first.name]["score"]) == pytest.approx(expected.score, abs=1e-5)
    assert label is not None
    assert run()[0] == Scored(41, 0, 0, 0, 0)


def test_images_are_known_by_their_paths_however_they_are_written(
    scorer, photos, tmp_path, monkeypatch
):
    folder, out = tmp_path / "photos", tmp_path / "out.csv"
    shutil.copytree(photos / "ash", folder)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert score_to_file(scorer, find_images(["photos"]), out, lambda done: None).added == 40
    assert read(out)[0]["source"].startswith("photos/")
    for given in (folder, "./photos", "link", tmp_path / "photos/../photos"):
        assert score_to_file(scorer, find_images([given]), out, lambda done: None).added == 0
    (tmp_path / "elsewhere/photos").mkdir(parents=True)
    shutil.copy(next(folder.iterdir()), tmp_path / "elsewhere/photos")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert score_to_file(scorer, find_images(["../photos"]), out, lambda done: None).added == 0
    # a relative name from another folder would be another image's
    assert score_to_file(scorer, find_images(["photos"]), out, lambda done: None).added == 1
    assert read(out)[-1]["source"].startswith(str(tmp_path / "elsewhere/photos/"))


def test_one_run_writes_at_a_time(scorer, images, tmp_path, isomax, compared):
    out, second = tmp_path / "out.csv", []

    def begin_another(done):
        if not second:
            second.append(isomax("score", compared.output / "model.onnx", images[0], "--out", out))

    assert score_to_file(scorer, images, out, begin_another).total == 42
    assert second[0].returncode == 2
    assert "is being written by another run; wait for it" in second[0].stderr
    assert len(read(out)) == 42


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_link_is_written_through(scorer, images, tmp_path, suffix):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / f"far/out{suffix}", tmp_path / f"link{suffix}"
    link.symlink_to(target)
    for given in (images[:2], [*images[:1], images[-1]]):  # first there is nothing there
        score_to_file(scorer, given, link, lambda done: None)
    assert link.is_symlink()
    assert len(read(target)) == 3
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_whatever_is_written_whole_goes_through_a_link(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "far/target.json")
    for content in ([1], [2]):
        write_json(tmp_path / "link.json", content)
        assert read_json(tmp_path / "far/target.json") == content
    assert (tmp_path / "link.json").is_symlink()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_with_a_word(
    scorer, images, tmp_path, monkeypatch, number
):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", none)
    out, said = tmp_path / "out.csv", []
    score_to_file(scorer, images[:2], out, lambda done: None, doubt=said.append)
    assert len(read(out)) == 2
    assert said == [
        f"the file system of {out} has no locks ({os.strerror(number)}): start no other run that "
        "writes it until this one is done"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(scorer, images, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        score_to_file(scorer, images, tmp_path / "closed/out.csv", lambda done: None)


def test_an_output_that_cannot_be_written_is_one_line(scorer, images, tmp_path, isomax, compared):
    (tmp_path / "file").write_text("x")
    for out, message in (
        (tmp_path / "file/out.csv", "cannot be written: (Not a directory|File exists)"),
        (tmp_path / ("x" * 300 + ".csv"), "cannot be written: File name too long"),
        (tmp_path / "folder.csv", "is a folder"),
    ):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            score_to_file(scorer, images, out, lambda done: None)
    run = isomax("score", compared.output / "model.onnx", images[0], "--out", "/dev/full/a.csv")
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


def test_a_full_disk_keeps_the_rows_before(scorer, images, tmp_path):
    """As a limit of this process: rows are cut off in the middle, and gone on with."""
    out = tmp_path / "out.csv"
    score_to_file(scorer, images[:5], out, lambda done: None)
    size, limits = out.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 300, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written: File too large"):
            score_to_file(scorer, images, out, lambda done: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handled)
    assert score_to_file(scorer, images, out, lambda done: None).total == 42
    assert sorted(row["source"] for row in read(out)) == sorted(images)


def test_an_interrupted_parquet_file_is_continued_from_its_rows(scorer, images, tmp_path):
    def broken_off():
        yield from images[:10]
        raise OSError("the listing broke off")

    out = tmp_path / "out.parquet"
    with pytest.raises(OSError, match="broke off"):
        score_to_file(scorer, broken_off(), out, lambda done: None)
    # the rows of what came before are there
    assert len(read(tmp_path / ".out.parquet.rows.jsonl")) == 10
    done = []
    assert score_to_file(scorer, images, out, done.append) == Scored(42, 1, 32, 0, 0)
    assert len(read(out)) == 42


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_another_model_or_alpha_does_not_continue_a_file(scorer, images, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    score_to_file(scorer, images[:3], out, lambda done: None)
    before = out.read_bytes()
    other = copy.copy(scorer)
    other.sha256 = "of another file"
    for changed, message in (
        (other, "was scored by another model; choose another file, or delete it"),
        (scorer.at(0.5), r"was scored with alpha 0\.05, threshold .*, not 0\.5, "),
    ):
        with pytest.raises(InputError, match=message):
            score_to_file(changed, images, out, lambda done: None)
    note = tmp_path / f".out{suffix}.run.json"
    for content in ("x", "[1]", "{}"):
        note.write_text(content)
        with pytest.raises(InputError, match="is damaged"):
            score_to_file(scorer, images, out, lambda done: None)
    note.unlink()
    with pytest.raises(InputError, match="nothing says which model scored it"):
        score_to_file(scorer, images, out, lambda done: None)
    assert out.read_bytes() == before
    out.unlink()
    assert score_to_file(scorer.at(0.5), images[:3], out, lambda done: None).total == 3
    # an empty file is nobody's
    out.write_bytes(b"")
    note.unlink()
    assert score_to_file(scorer, images[:3], out, lambda done: None).total == 3


def test_a_model_is_known_by_its_content(compared, tmp_path):
    model = compared.output / "model.onnx"
    assert Scorer(model).sha256 == hashlib.sha256(model.read_bytes()).hexdigest()


def test_rows_are_on_disk_as_they_are_made(scorer, images, tmp_path):
    out, seen = tmp_path / "out.jsonl", []
    score_to_file(scorer, images, out, lambda done: done and seen.append(len(read(out))))
    assert seen == list(range(1, 43))


def test_pyarrow_is_looked_for_before_anything_is_scored(scorer, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="takes pyarrow: pip install pyarrow"):
        score_to_file(scorer, images, tmp_path / "out.parquet", lambda done: None)
    assert not list(tmp_path.glob(".*"))


def test_other_files_are_left_alone(scorer, images, tmp_path):
    for name, content in (
        ("a.csv", "x,y\n1,2\n"),
        ("b.csv", ",".join(COLUMNS) + "\n1,2\n3,4\n"),
        ("a.jsonl", "hello\n"),
        ("b.jsonl", "hello"),
        ("c.jsonl", '{"source": "x"}\n'),
        ("a.parquet", "hello"),
    ):
        out = tmp_path / name
        out.write_text(content, newline="")
        with pytest.raises(InputError, match="nothing says which model"):
            score_to_file(scorer, images, out, lambda done: None)
        assert out.read_bytes() == content.encode()
        out.unlink()
        score_to_file(scorer, images[:1], out, lambda done: None)  # what it stood in the place of
        out.write_text(content, newline="")
        with pytest.raises(InputError, match="holds no scores"):
            score_to_file(scorer, images, out, lambda done: None)
        assert out.read_bytes() == content.encode()
    with pytest.raises(InputError, match="format is unknown"):
        score_to_file(scorer, images, tmp_path / "a.xlsx", lambda done: None)


def test_a_killed_run_is_continued(compared, photos, tmp_path):
    """The command itself, killed once rows are there, and started again."""
    folder, killed, whole = tmp_path / "many", tmp_path / "killed.csv", tmp_path / "whole.csv"
    folder.mkdir()
    files = sorted(photos.rglob("*.jpg"))
    for number in range(4_000):
        os.link(files[number % len(files)], folder / f"{number:04}.jpg")

    def command(out):
        code = "import sys; from isomax_evaluation.cli import main; sys.argv[0] = 'isomax'; main()"
        arguments = ["score", compared.output / "model.onnx", folder, "--out", out]
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    first = command(killed)
    while not (killed.exists() and killed.stat().st_size > 2_000):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.001)
    first.kill()
    first.communicate()
    left = killed.read_bytes()
    assert first.returncode == -signal.SIGKILL
    assert 0 < left.count(b"\n") < 4_000  # it was killed half way

    for out in (killed, whole):
        run = command(out)
        output = run.communicate()[0]
        assert run.returncode == 0, output
        assert "4000 rows" in output
    assert killed.read_bytes().startswith(left[: left.rindex(b"\n")])  # rows are kept
    one, other = read(killed), read(whole)
    assert len(one) == len(other) == 4_000
    for row, expected in zip(one, other, strict=True):
        # the size of a batch moves the last bits
        for number in ("score", "confidence"):
            assert float(row.pop(number)) == pytest.approx(float(expected.pop(number)), abs=1e-5)
        assert row == expected


def test_alpha_on_the_command_line(isomax, compared, photos, tmp_path):
    model, out = compared.output / "model.onnx", tmp_path / "out.csv"
    run = isomax("score", model, photos / "ash", "--alpha", 0.5, "--out", out)
    assert run.returncode == 0, run.stderr
    assert "nothing new" not in run.stdout
    threshold = Scorer(model, alpha=0.5).threshold
    assert threshold != Scorer(model).threshold
    for row in read(out):
        assert (row["is_ood"] == "True") == (np.float32(row["score"]) > np.float32(threshold))
    run = isomax("score", model, photos / "ash", "--alpha", 0.5, "--out", out)
    assert (run.returncode, "(nothing new)" in run.stdout) == (0, True)
    run = isomax("score", model, photos / "ash", "--out", out)
    assert run.returncode == 2
    assert "was scored with alpha 0.5" in run.stderr.splitlines()[-1]  # the bar is above it
    assert "Traceback" not in run.stderr
    run = isomax("score", model, photos / "ash", "--alpha", 1.5)
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1)


def test_mutated_files_have_a_row_each(scorer, tmp_path):
    folder = tmp_path / "mutated"
    folder.mkdir()
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((48, 48))
    image.save(tmp_path / "original.jpg")
    original = np.frombuffer((tmp_path / "original.jpg").read_bytes(), dtype=np.uint8)
    for number in range(300):
        content = original.copy()
        places = generator.integers(0, len(content), generator.integers(1, 12))
        content[places] = generator.integers(0, 256, len(places))
        end = generator.integers(len(content) // 2, len(content) + 1)
        (folder / f"{number:03}.jpg").write_bytes(content.tobytes()[:end])
    out = tmp_path / "out.csv"
    done = score_to_file(scorer, find_images([folder]), out, lambda done: None)
    rows, failed = read(out), done.failed
    assert done.total == 300
    assert [row["source"] for row in rows] == list(find_images([folder]))
    assert 0 < failed == sum(bool(row["error"]) for row in rows) < 300
    assert all(row["error"] or np.isfinite(float(row["score"])) for row in rows)


def test_a_hundred_thousand_files_are_scored_as_they_are_listed(scorer, photos, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    files = sorted(photos.rglob("*.jpg"))
    try:
        for number in range(100_000):
            os.link(files[number % len(files)], folder / f"{number:05}.jpg")
        listed = islice(find_images([folder]), 2_000)
        done = score_to_file(scorer, listed, tmp_path / "out.csv", lambda done: None)
        assert (done.total, done.failed) == (2_000, 0)
    finally:
        shutil.rmtree(folder)
    rows = read(tmp_path / "out.csv")
    assert [os.path.basename(row["source"]) for row in rows[:2]] == ["00000.jpg", "00001.jpg"]
    assert os.path.basename(rows[-1]["source"]) == "01999.jpg"


def test_rotated_photographs_have_the_same_pixels_in_training(scorer, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by a quarter
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / "0.jpg", exif=exif)
    seen = []
    original = scorer.run
    monkeypatch.setattr(scorer, "run", lambda images: seen.append(images) or original(images))
    scorer.score(find_images([tmp_path / "photos"]))
    trained_on = open_images(str(tmp_path / "photos"))
    for number, image in enumerate(seen[0]):
        whole = trained_on.image(number)
        assert whole.size == (40, 24)
        expected = to_size_of_graph(whole, scorer.metadata["preprocessing"])
        np.testing.assert_array_equal(image, expected)


def test_a_name_that_is_no_text(isomax, compared, photos, tmp_path):
    name = os.fsencode(str(tmp_path)) + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write(next(photos.rglob("*.jpg")).read_bytes())
    run = isomax("score", compared.output / "model.onnx", tmp_path, "--out", tmp_path / "o.csv")
    assert run.returncode == 0, run.stderr
    assert len(read(tmp_path / "o.csv")) == 1
    model = os.fsencode(str(tmp_path)) + b"/mod\xe8le.onnx"
    shutil.copy(compared.output / "model.onnx", model)
    run = isomax("score", os.fsdecode(model), tmp_path)
    assert run.returncode == 0, run.stderr
    assert len(list(find_images([tmp_path]))) == len(run.stdout.splitlines()) - 1 == 1


def test_names_with_newlines_make_no_rows_of_their_own(isomax, compared, photos, tmp_path):
    odd = tmp_path / "a\n\x1b[31m.jpg"
    odd.write_bytes(next(photos.rglob("*.jpg")).read_bytes())
    run = isomax("score", compared.output / "model.onnx", tmp_path)
    assert len(run.stdout.splitlines()) == 2
    assert run.stdout.splitlines()[1].startswith(f"{tmp_path}/a\\n\\x1b[31m.jpg\t")


def test_what_pillow_warns_of_is_not_on_the_screen(isomax, compared, tmp_path):
    image = Image.new("P", (32, 32))
    image.putpalette(range(48))
    image.save(tmp_path / "a.png", transparency=bytes(range(16)))  # Pillow: convert it to RGBA
    run = isomax("score", compared.output / "model.onnx", tmp_path)
    assert run.returncode == 0
    assert run.stderr == ""


def test_a_folder_that_empties_while_it_is_scored(scorer, photos, tmp_path):
    """What was listed and is gone has a row that says so."""
    folder = tmp_path / "vanishing"
    shutil.copytree(photos / "ash", folder)
    listed = sorted(map(str, folder.iterdir()))

    def remove_the_rest(done):
        if done:
            shutil.rmtree(folder, ignore_errors=True)

    out = tmp_path / "out.csv"
    done = score_to_file(scorer, find_images([folder]), out, remove_the_rest)
    rows, failed = read(out), done.failed
    assert done.total == len(rows) == 40
    assert [row["source"] for row in rows] == listed
    assert not rows[0]["error"]
    assert "No such file" in rows[-1]["error"]
    assert failed == sum(bool(row["error"]) for row in rows) > 0
