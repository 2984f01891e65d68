"""The README's Python examples run as they stand."""

import os
import re
import shutil
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_there_is_one_example_for_each_user():
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number, compared, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "isomax-out").mkdir()
    shutil.copy(compared.output / "model.onnx", tmp_path / "isomax-out")
    for name in ("a.jpg", "b.png"):
        shutil.copy(next(photos.rglob("*.jpg")), tmp_path / name)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        names = {}
        exec(compile(EXAMPLES[number], f"README example {number + 1}", "exec"), names)
    finally:
        os.chdir(before)
    printed = capsys.readouterr().out
    if number == 0:
        assert names["scores"].shape == (4,)
    if number == 1:
        assert printed.startswith("needs the weights of a linear classifier")
        assert set(names["scores"]) == {"EntropicScore", "ReAct", "KNN", "ODIN"}
        assert not names["failed"]
    if number == 2:
        assert set(names["table"]["detector"]) == {"MaxLogit", "KNN", "ViM"}
    if number == 3:
        assert len(printed.splitlines()) == 2
    if number == 4:
        assert not names["scorer"].score(tmp_path / "a.jpg")[0].error
