import csv
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isomax_evaluation.data.listing.tables import load_class_map, read_labels

from .trees import labelled, make_tree

FILES = ("1.png", "b/2.png", "c d/3, x.png", "e;f.png", "g|h.png", 'q"r.png')


def write(root, *lines, name="labels.csv", encoding="utf-8"):
    path = root / name
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@given(
    st.lists(
        st.tuples(st.sampled_from(FILES), st.sampled_from(["cat", "0", "a b", "x;y", "é"])),
        min_size=1,
        unique_by=lambda row: row[0],
    ),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([(), ("path", "label"), ("Label", "File_Name"), ("x", "image", "class")]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_a_table_is_read_whatever_its_delimiter_and_header(
    tmp_path_factory, rows, delimiter, header, ending, bom
):
    order = {"path": 0, "file_name": 0, "image": 0, "label": 1, "class": 1}
    root = make_tree(tmp_path_factory.mktemp("data"), *FILES)
    path = root / "labels.csv"
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=ending)
        if header:
            writer.writerow(header)
        for row in rows:
            columns = [order.get(name.lower()) for name in header] or [0, 1]
            writer.writerow(["7" if at is None else row[at] for at in columns])
    scanned = read_labels(path)
    assert all(Path(file).is_file() for file in scanned.train.paths)
    assert labelled(scanned.train) == dict(rows)
    assert scanned.left_out == ()


def test_splits_and_groups_are_columns(tmp_path):
    make_tree(tmp_path, *(f"{at}.png" for at in range(5)))
    path = write(
        tmp_path,
        "path,label,Split,group,camera",
        *("0.png,a,train,g1,x", "1.png,b,Training,g2,x", "2.png,a,VALID,g3,y", "3.png,b,test,g3,y"),
    )
    scanned = read_labels(path)
    assert {split: listing.names for split, listing in scanned.splits.items()} == {
        "train": ("0.png", "1.png"),
        "val": ("2.png",),
        "test": ("3.png",),
    }
    assert list(scanned.splits) == ["train", "val", "test"]
    assert scanned.train.groups == ("g1", "g2")
    assert read_labels(path, group_by="camera").held_out.groups == ("y",)
    with pytest.raises(
        ValueError, match="no column 'day'; it has path, label, Split, group, camera"
    ):
        read_labels(path, group_by="day")


def test_columns_without_names_come_in_order(tmp_path):
    make_tree(tmp_path, "0.png", "1.png")
    scanned = read_labels(write(tmp_path, "0.png,a,train,p", "", "1.png,a,eval,q"))
    assert (scanned.train.names, scanned.test.names) == (("0.png",), ("1.png",))
    assert scanned.test.groups == ("q",)
    assert len(read_labels(write(tmp_path, "0.png 65", "1.png 3")).train) == 2
    with pytest.raises(ValueError, match="does not name its columns"):
        read_labels(write(tmp_path, "0.png,a"), group_by="p")


def test_the_order_is_not_that_of_the_rows(tmp_path):
    make_tree(tmp_path, "x/0.png", "a.png", "b.png", "c.png")
    lines = ["b.png,10", "x/0.png,9", "a.png,10", "c.png,9"]
    one = read_labels(write(tmp_path, *lines)).train
    other = read_labels(write(tmp_path, *reversed(lines))).train
    assert one.names == other.names == ("c.png", "x/0.png", "a.png", "b.png")
    assert one.class_names == ("9", "10")


def test_paths_are_relative_to_the_table_or_absolute_or_from_windows(tmp_path):
    make_tree(tmp_path, "data/a/1.png", "data/a/2.png", "far/3.png", "sets/readme")
    path = write(
        tmp_path / "sets", "../data/a/1.png,a", r"..\data\a\2.png,a", f"{tmp_path}/far/3.png,b"
    )
    listing = read_labels(path).train
    assert listing.names == ("../data/a/1.png", "../data/a/2.png", "../far/3.png")
    assert all(Path(file).is_file() for file in listing.paths)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("9.png,a,train", "line 3: there is no file 9.png"),
        ("0.png,a,train", "line 3: 0.png is in line 2 already"),
        ("./0.png,b,train", "line 3: 0.png is in line 2 already"),
        ("1.png,,train", "line 3: no label"),
        ("1.png", "line 3: no label"),
        (",a,train", "line 3: no path"),
        ("1.png,a,", "line 3: no split"),
        ("1.png,a,dev", "line 3: the split is 'dev'; expected train, val or test"),
    ],
)
def test_bad_rows_are_named_or_left_out(tmp_path, row, named):
    make_tree(tmp_path, "0.png", "1.png")
    path = write(tmp_path, "path,label,split", "0.png,a,train", row)
    with pytest.raises(ValueError, match=r"1 of 2 rows of .* cannot be used: ") as raised:
        read_labels(path)
    assert named in str(raised.value)
    scanned = read_labels(path, skip_bad=True)
    assert labelled(scanned.train) == {"0.png": "a"}
    assert scanned.left_out[0].examples == (named,)


def test_a_table_of_nothing_but_bad_rows_is_refused_anyway(tmp_path):
    path = write(tmp_path, "path,label", *(f"{at}.png,a" for at in range(9)))
    with pytest.raises(ValueError, match=r"9 of 9 rows .* line 6: [^;]*; \.\.\.$"):
        read_labels(path, skip_bad=True)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["id,breed", "0.png,a"], "begins with 'id,breed', which is neither the names of columns"),
        (["0.png"], "begins with '0.png', which is neither"),
        ([""], "begins with '', which is neither"),
        (["path,label"], "lists no images"),
        (["path,label,split", "0.png,a,train", "1.png,b,test"], "without training images: b"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, lines, message):
    make_tree(tmp_path, "0.png", "1.png")
    with pytest.raises(ValueError, match=message):
        read_labels(write(tmp_path, *lines))


def test_files_that_are_no_text_or_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is not in UTF-8"):
        read_labels(write(tmp_path, "path,label", "é.png,a", encoding="utf-16"))


def test_class_maps_are_timms(tmp_path):
    timm_data = pytest.importorskip("timm.data.readers.class_map")
    text = write(tmp_path, "dog", "cat", "", name="map.txt")
    (tmp_path / "map.pkl").write_bytes(pickle.dumps({"dog": 0, "cat": 1}))
    pickled = tmp_path / "map.pkl"
    assert load_class_map(text) == load_class_map(pickled) == {"dog": 0, "cat": 1}
    assert load_class_map(pickled) == timm_data.load_class_map(str(pickled))
    make_tree(tmp_path, "1.png", "2.png", "3.png")
    table = write(tmp_path, "1.png,cat", "2.png,dog", "3.png,fox")
    scanned = read_labels(table, load_class_map(text))
    assert scanned.train.class_names == ("dog", "cat")
    assert scanned.train.labels.tolist() == [0, 1]
    assert scanned.left_out[0].examples == ("line 3: fox",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Path("x")), "it asks for pathlib"),
        (pickle.dumps([1]), "holds no dict of class names"),
        (pickle.dumps({0: 1}), "holds no dict of class names"),
        (b"hello", "is no pickled class map"),
    ],
)
def test_nothing_else_is_unpickled(tmp_path, content, message):
    (tmp_path / "map.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_class_map(tmp_path / "map.pkl")
    with pytest.raises(ValueError, match=r"classes twice: \['a'\]"):
        load_class_map(write(tmp_path, "a", "b", "a", name="map.txt"))
