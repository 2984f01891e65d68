import builtins

from isomax_evaluation.data.listing import contents as module
from isomax_evaluation.data.listing.contents import contents_of


def test_files_of_the_same_content_have_the_same_number(tmp_path, monkeypatch):
    long = b"x" * 10_000
    files = {
        "alone": b"of no other size",
        "a": b"abc",
        "b": b"abd",
        "c": b"abc",
        "l": long + b"1",
        "m": long + b"2",
        "n": long + b"1",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in files]
    read, original = [], builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda path, *rest: read.append(str(path)) or original(path, *rest)
    )
    assert contents_of(paths).tolist() == [0, 1, 2, 1, 4, 5, 4]
    assert str(tmp_path / "alone") not in read
    monkeypatch.setattr(module, "_BEGINNING", 2)
    assert contents_of(paths).tolist() == [0, 1, 2, 1, 4, 5, 4]


def test_a_file_that_cannot_be_read_is_like_no_other(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    paths = [str(tmp_path / name) for name in ("gone", "a", "gone too")]
    assert contents_of(paths).tolist() == [0, 1, 2]
    assert len(contents_of([])) == 0
