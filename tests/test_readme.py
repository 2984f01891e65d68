"""The README's Python examples run as they stand; those in other languages read grey values as the
runtime does."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from isomax_adapters.onnx.images import as_array
from isomax_adapters.onnx.runtime import Scorer

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def about(grey_range):
    """What a file's metadata say, as export writes them."""
    config = {"input_size": [1, 8, 8]} | ({"grey_range": grey_range} if grey_range else {})
    return json.dumps({"class_names": ['"grey_range": [7, 8]', "b"], "preprocessing": config})


def levels(grey_range):
    """What the runtime makes of all grey values of 16 bits."""
    image = Image.fromarray(np.arange(65536, dtype=np.uint16)[None])
    return as_array(image, 1, grey_range)[0, :, 0].tolist()


def code_of(language):
    """What an example does about grey values."""
    (example,) = re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    return example.partition("// grey of more than 8 bits")[2].partition("\n")[2]


RANGES = [None, (100, 4195), (-5, 40_000)]


@pytest.mark.parametrize("grey_range", RANGES)
def test_node_reads_grey_values_as_the_runtime_does(grey_range, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    model = onnx.ModelProto(producer_name="\u00e9\0\n")
    model.metadata_props.add(key="isomax", value=about(grey_range))
    onnx.save(model, tmp_path / "model.onnx")
    lines = ['import fs from "node:fs";', code_of("js")]
    lines += ["console.log(JSON.stringify(Array.from({ length: 65536 }, (_, v) => to8(v))));"]
    (tmp_path / "example.mjs").write_text("\n".join(lines))
    run = subprocess.run(
        [node, "example.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == levels(grey_range)


def test_cpp_reads_grey_values_as_the_runtime_does(tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    code = re.sub(r"Ort::.*\n|const std::string about.*\n", "", code_of("cpp"))
    includes = ("algorithm", "cstdint", "iostream", "iterator", "regex", "string")
    head = "".join(f"#include <{name}>\n" for name in includes)
    given = "const std::string about{std::istreambuf_iterator<char>(std::cin), {}};\n"
    loop = 'for (int v = 0; v < 65536; ++v) std::cout << int(to8(v)) << " ";'
    (tmp_path / "example.cpp").write_text(f"{head}int main() {{ {given}{code}\n{loop} }}")
    subprocess.run([compiler, "-std=c++17", "example.cpp", "-o", "e"], cwd=tmp_path, check=True)
    for grey_range in RANGES:
        run = subprocess.run(
            ["./e"], cwd=tmp_path, input=about(grey_range), capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert list(map(int, run.stdout.split())) == levels(grey_range)


def test_each_example_is_looked_at():
    assert len(EXAMPLES) == 6


def own_loop():
    """What a training loop of one's own has at its end."""
    images = torch.randn(40, 3, 160, 160)
    loader = DataLoader(TensorDataset(images, torch.arange(40) % 3), batch_size=20)
    return {
        "model": timm.create_model("test_resnet", num_classes=3),
        "held_out": loader,
        "training": loader,
        "class_names": ["ash", "birch", "cedar"],
    }


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
        names = own_loop() if number == 4 else {}
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
        assert not Scorer(tmp_path / "my-model.onnx").score(tmp_path / "a.jpg")[0].error
    if number == 5:
        assert not names["scorer"].score(tmp_path / "a.jpg")[0].error
