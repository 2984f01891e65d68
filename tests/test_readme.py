"""What README and guides say: their Python examples run as they stand, those in other languages
read grey values as the runtime does; commands, options, names and links are there."""

import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
import typer
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from isomax_adapters.runtime.decoding import Decoding
from isomax_adapters.runtime.scorer import Scorer
from isomax_evaluation.cli import app

ROOT = Path(__file__).parents[1]
PLACES = {"README": "README.md"} | runpy.run_path(str(ROOT / "evaluation/docs/pages.py"))["PAGES"]
PAGES = {name: (ROOT / path).read_text(encoding="utf-8") for name, path in PLACES.items()}
EXAMPLES = [
    (name, number, code)
    for name, text in PAGES.items()
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    if name != "extend"  # which registers a head for good
]


def about(grey_range):
    """What a file's metadata say, as export writes them."""
    config = {"input_size": [1, 8, 8]} | ({"grey_range": grey_range} if grey_range else {})
    return json.dumps({"class_names": ['"grey_range": [7, 8]', "b"], "preprocessing": config})


def levels(grey_range):
    """What the runtime makes of all grey values of 16 bits."""
    image = Image.fromarray(np.arange(65536, dtype=np.uint16)[None])
    return Decoding(1, grey_range).array(image)[0, :, 0].tolist()


def code_of(language):
    """What an example does about grey values."""
    (example,) = re.findall(rf"```{language}\n(.*?)```", PAGES["deploy"], re.DOTALL)
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


def own_loop():
    """What a training loop of one's own has at its end."""
    images = torch.randn(160, 3, 160, 160)  # more than features, which ViM takes
    loader = DataLoader(TensorDataset(images, torch.arange(160) % 3), batch_size=20)
    return {
        "model": timm.create_model("test_resnet", num_classes=3),
        "held_out": loader,
        "training": loader,
        "class_names": ["ash", "birch", "cedar"],
    }


@pytest.mark.parametrize(
    ("page", "number", "code"), EXAMPLES, ids=[f"{page} {number}" for page, number, _ in EXAMPLES]
)
def test_example(page, number, code, compared, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "isomax-out").mkdir()
    shutil.copy(compared.output / "model.onnx", tmp_path / "isomax-out")
    for name in ("a.jpg", "b.png"):
        shutil.copy(next(photos.rglob("*.jpg")), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names = own_loop() if "calibrate_model" in code else {}
    exec(compile(code, f"{page}, example {number}", "exec"), names)
    printed = capsys.readouterr().out
    match page, number:
        case (("README" | "fine-tune"), 0):
            assert printed == "tensor([2.3026, 2.3026, 2.3026, 2.3026])\n"
        case "compare", 0:
            assert printed.startswith("needs the weights of a linear classifier")
            assert set(names["scores"]) == {"EntropicScore", "ReAct", "KNN", "ODIN"}
            assert not names["failed"]
        case "compare", 1:
            assert set(names["table"]["detector"]) == {"MaxLogit", "KNN", "ViM"}
        case "deploy", 0:
            assert len(printed.splitlines()) == 2
        case "deploy", 1:
            assert not Scorer(tmp_path / "my-model.onnx").score(tmp_path / "a.jpg")[0].error
        case "track", 0:
            assert not names["scorer"].score(tmp_path / "a.jpg")[0].error
        case _:
            pytest.fail("nothing looks at what this example did")


WITH_A_HEAD_OF_ONES_OWN = """
import numpy as np
from isomax import IsoMaxLoss, start_head
from isomax.calibration import Calibration
from isomax_adapters.onnx import export
from isomax_adapters.runtime import Scorer
from isomax_adapters.timm import attach, head_of, load_model, save_model
from isomax_evaluation.training.losses import LOSSES

torch.manual_seed(0)
model = attach(timm.create_model("test_resnet", num_classes=10), "cosine", num_classes=3)
head, labels = model.get_classifier(), torch.arange(30) % 3
images = torch.randn(30, 3, 160, 160) + labels[:, None, None, None]
with torch.no_grad():
    assert start_head(head, model.forward_head(model.forward_features(images), True), labels)
before = head.prototypes.detach().clone()
IsoMaxLoss()(model(images), labels).backward()
torch.optim.SGD(model.parameters(), 0.1).step()
assert not torch.equal(head.prototypes, before)
with torch.no_grad():
    logits = model.eval()(images)
assert LOSSES["cosine"].score == "MinimumDistanceScore"
calibration = Calibration.fit(logits, labels, head.score, alpha=0.1)
loaded = load_model(save_model(model, "model", ["a", "b", "c"], calibration=calibration))
assert head_of(loaded) == "cosine"
assert torch.equal(loaded(images), model(images))
pixels = np.full((160, 160, 3), 90, np.uint8)
assert not Scorer(export("model", "model.onnx")).score([pixels])[0].error
try:
    register_head(type("Other", (CosineHead,), {}))
except ValueError as error:
    print(error)
"""


def test_a_head_of_ones_own_is_attached_trained_saved_and_exported(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["extend"], re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code + WITH_A_HEAD_OF_ONES_OWN],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shape, refused = done.stdout.splitlines()
    assert shape == "torch.Size([4, 10])"
    assert refused.startswith("there are models of name 'cosine' or prefix 'cosine_' already")


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    found = runpy.run_path(str(ROOT / "evaluation/docs/first_steps.py"))
    assert found["accuracy"] > 0.95
    assert found["auroc"]["7, 8, 9"] > 0.8
    assert found["auroc"]["noise"] > 0.95
    known, unknown = capsys.readouterr().out.splitlines()[-2:]
    rejected = [int(re.search(r": (\d+)% rejected", line)[1]) for line in (known, unknown)]
    assert rejected[0] <= 15
    assert rejected[1] > 2 * rejected[0]


def commands():
    """Every ``isomax`` command line of the pages, with its options."""
    for page, text in PAGES.items():
        joined = text.replace("\\\n", " ")
        found = re.findall(
            r"(?:^    |`|&& )isomax ([a-z]+)((?:(?!&&)[^`\n])*)", joined, re.MULTILINE
        )
        for command, rest in found:
            yield page, command, re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)


def test_commands_and_options_are_there():
    known = typer.main.get_command(app).commands
    found = list(commands())
    assert len({command for _, command, _ in found}) >= 8
    for page, command, options in found:
        assert command in known, f"{page}: isomax {command}"
        there = {o for p in known[command].params for o in (*p.opts, *p.secondary_opts)}
        assert set(options) <= there | {"--help"}, f"{page}: isomax {command}"


def test_options_in_the_text_are_there():
    known = {
        option
        for command in typer.main.get_command(app).commands.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    others = {  # of pip, torchrun, timm's script, MLflow, curl, pytest
        "--nproc-per-node", "--device-modules", "--bce-loss", "--initial-checkpoint", "--version",
    }  # fmt: skip
    for page, text in PAGES.items():
        mentioned = set(re.findall(r"`(--[a-z][a-z-]*)", text))
        assert mentioned - others <= known, page


def test_names_in_the_text_can_be_imported():
    for page, text in PAGES.items():
        for dotted in re.findall(r"`(isomax(?:_adapters|_evaluation)?(?:\.\w+)+)", text):
            module, _, name = dotted.rpartition(".")
            try:
                found = getattr(importlib.import_module(module), name, None)
                found = found or importlib.import_module(dotted)
            except ImportError:
                found = None
            assert found, f"{page}: {dotted}"


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#\s]+)\)", text):
            if not link.startswith("http"):
                assert (ROOT / PLACES[page]).parent.joinpath(link).exists(), f"{page}: {link}"


def test_messages_that_are_explained_are_those_of_the_code():
    code = ""
    for top in ("plugin", "adapters", "evaluation"):
        for path in sorted((ROOT / top).rglob("*.py")):
            code += path.read_text(encoding="utf-8")
    # as one text: messages go over several lines of code
    code = re.sub(r"\"\s*\n?\s*f?\"", "", code)
    quoted = re.findall(r"^\| `([^`]+)`", PAGES["troubleshooting"], re.MULTILINE)
    assert len(quoted) > 20
    for fragment in quoted:
        assert fragment in code, fragment
