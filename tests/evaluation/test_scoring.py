"""Scores into a file: whole, in order, and continued after an interruption."""

import csv
import json
import os
import shutil
import tracemalloc
from itertools import chain
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from isomax_adapters.onnx.runtime import Scorer, find_images
from isomax_evaluation.errors import InputError
from isomax_evaluation.scoring import COLUMNS, score_to_file


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
    assert score_to_file(scorer, images, out, done.append) == (42, 1)
    assert sum(done) == 42
    rows = read(out)
    assert tuple(rows[0]) == COLUMNS
    assert [row["source"] for row in rows] == images
    assert [bool(row["error"]) for row in rows] == [image.endswith("bad.jpg") for image in images]
    for row, result in zip(rows, scorer.score(images), strict=True):
        if not row["error"]:
            assert float(row["score"]) == pytest.approx(result.score, abs=1e-6)
            assert str(row["is_ood"]) == str(result.is_ood)
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.55, 0.9, 0.999, 1.0])
def test_a_file_cut_off_anywhere_is_continued(scorer, images, tmp_path, suffix, share):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    score_to_file(scorer, images, whole, lambda done: None)
    content = whole.read_bytes()
    header = len(content.split(b"\n")[0]) + 1 if suffix == ".csv" else 0
    cut.write_bytes(content[: max(header, int(share * len(content)))])
    computed = []
    original = scorer.stream

    class Counting:
        def stream(self, inputs, batch_size=16):
            for result in original(inputs, batch_size):
                computed.append(result)
                yield result

    assert score_to_file(Counting(), images, cut, lambda done: None) == (42, 1)
    assert [r["source"] for r in read(cut)] == images
    assert [r["error"] for r in read(cut)] == [r["error"] for r in read(whole)]
    # a row or two are computed again, not all
    assert len(computed) <= (1 - share) * 42 + 5


def test_reading_rows_back_takes_no_memory_of_them(scorer, images, tmp_path):
    out = tmp_path / "out.csv"
    score_to_file(scorer, images[:1], out, lambda done: None)
    header, row = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(header + 20_000 * row)  # 2 MB
    tracemalloc.start()
    try:
        again = chain([images[0]] * 20_000, images[1:3])
        assert score_to_file(scorer, again, out, lambda done: None)[0] == 20_002
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_parquet_file_is_continued_from_its_rows(scorer, images, tmp_path):
    rows = tmp_path / ".out.parquet.rows.jsonl"
    score_to_file(scorer, images[:10], rows, lambda done: None)
    out = tmp_path / "out.parquet"
    assert score_to_file(scorer, images, out, lambda done: None) == (42, 1)
    assert len(read(out)) == 42
    with pytest.raises(InputError, match="there already"):
        score_to_file(scorer, images, out, lambda done: None)


def test_other_files_are_left_alone(scorer, images, tmp_path):
    for name, content in (
        ("a.csv", "x,y\n1,2\n"),
        ("b.csv", ",".join(COLUMNS) + "\r\n1,2\r\n3,4\r\n"),
        ("a.jsonl", "hello\n"),
        ("b.jsonl", "hello"),
        ("c.jsonl", '{"source": "x"}\n'),
    ):
        (tmp_path / name).write_text(content, newline="")
        with pytest.raises(InputError, match="holds no scores"):
            score_to_file(scorer, images, tmp_path / name, lambda done: None)
        assert (tmp_path / name).read_bytes() == content.encode()
    with pytest.raises(InputError, match="format is unknown"):
        score_to_file(scorer, images, tmp_path / "a.xlsx", lambda done: None)
    out = tmp_path / "out.csv"
    score_to_file(scorer, images[:5], out, lambda done: None)
    before = out.read_bytes()
    with pytest.raises(InputError, match="is of other images: row 1"):
        score_to_file(scorer, images[5:], out, lambda done: None)
    with pytest.raises(InputError, match=r"row 4 is of .* this run's has no more"):
        score_to_file(scorer, images[:3], out, lambda done: None)
    assert out.read_bytes() == before


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
    total, failed = score_to_file(scorer, find_images([folder]), out, remove_the_rest)
    rows = read(out)
    assert total == len(rows) == 40
    assert [row["source"] for row in rows] == listed
    assert not rows[0]["error"]
    assert "No such file" in rows[-1]["error"]
    assert failed == sum(bool(row["error"]) for row in rows) > 0
