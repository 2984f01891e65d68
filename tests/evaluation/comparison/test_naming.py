import pytest

from isomax_evaluation.comparison.given import no_doubles, split_name, unique_names
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.folders import identity


def test_a_name_stands_before_the_source(tmp_path, monkeypatch):
    assert split_name("mine=/data/birds") == ("mine", "/data/birds")
    assert split_name("/data/a=b") == (None, "/data/a=b")
    assert split_name("resnet50.a1_in1k") == (None, "resnet50.a1_in1k")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert split_name("lr=0.1") == (None, "lr=0.1")


def test_folders_are_called_by_as_much_of_their_path_as_it_takes(tmp_path):
    folders = [tmp_path / "a" / "x" / "val", tmp_path / "b" / "x" / "val", tmp_path / "other"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert unique_names([*map(str, folders), "torch/mnist"]) == [
        "a/x/val",
        "b/x/val",
        "other",
        "mnist",
    ]
    assert unique_names([str(folders[2])], taken=["other"]) == [f"{tmp_path.name}/other"]


def test_two_ways_to_name_a_folder_are_one(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    assert identity("a") == identity("./a/") == identity(str(tmp_path / "a"))
    assert identity("torch/mnist") == identity("MNIST")


def test_doubles_are_named():
    no_doubles("models", ["a", "b"])
    with pytest.raises(InputError, match="a occurs twice among the models"):
        no_doubles("models", ["a", "b", "a"])
