"""The command as a user runs it."""

import importlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from isomax_adapters.runtime.scorer import Scorer
from isomax_evaluation.cli import app, main
from isomax_evaluation.cli.options import recipe_of
from isomax_evaluation.cli.tables import of_comparison
from isomax_evaluation.cli.terminal import print_blocks, print_table
from isomax_evaluation.output.errors import InputError

from ...adapters.mlflow.servers import tracking_server
from ...image_folders import make_folder


def test_help_names_the_commands(isomax):
    run = isomax("--help")
    assert run.returncode == 0
    for command in ("compare", "train", "export", "score", "speed"):
        assert command in run.stdout


def test_help_fits_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in app.registered_commands:
        run = CliRunner().invoke(app, [command.name, "--help"])
        assert run.exit_code == 0
        assert max(map(len, run.output.splitlines())) <= 80
        cut = [line for line in run.output.splitlines() if "…" in line]
        # the text beside it says the second name
        assert [line for line in cut if "--weights,--init" not in line] == []


def test_help_and_score_import_neither_torch_nor_mlflow(photos, compared):
    import subprocess
    import sys

    code = (
        "import sys; from typer.testing import CliRunner; from isomax_evaluation.cli import app;"
        "r = CliRunner().invoke(app, sys.argv[1:]);"
        "heavy = {'torch', 'timm', 'mlflow', 'pandas', 'onnx'} & set(sys.modules);"
        "sys.exit(f'{heavy} {r.output}' if heavy or r.exit_code else 0)"
    )
    for args in (["--help"], ["score", str(compared.output / "model.onnx"), str(photos)]):
        run = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr


def test_score_prints_a_row_per_image(isomax, compared, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    run = isomax("score", compared.output / "model.onnx", photos / "ash", bad, "--top", 2)
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    classes = ["class 1", "probability 1", "class 2", "probability 2"]
    assert rows[0] == ["file", "class", "confidence", "score", "p-value", "verdict", *classes]
    assert len(rows) == 42
    for row in rows[1:41]:
        assert row[5] == ("OOD" if float(row[4]) <= 0.05 else "ID")
        assert row[6:8] == row[1:3]
        assert float(row[7]) >= float(row[9]) > 0
    assert rows[41] == [str(bad), "", "", "", "", "error", "", "", "", ""]
    assert run.returncode == 1
    assert "bad.jpg: not scored" in run.stderr
    assert "1 could not be scored" in run.stderr


def test_score_prints_json_per_image(isomax, compared, photos, tmp_path):
    bad, model = tmp_path / "bad.jpg", compared.output / "model.onnx"
    bad.write_bytes(b"no image")
    run = isomax("score", model, photos / "ash", bad, "--json", "--top", 3)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in run.stdout.splitlines()]
    assert (len(rows), run.returncode) == (41, 1)
    files = [*sorted((photos / "ash").iterdir()), bad]
    for row, result in zip(rows, Scorer(model).score(files, top=3), strict=True):
        assert row["source"] == result.source
        top = [(one["class_name"], one["probability"]) for one in row["top"]]
        if result.error:
            assert (row["error"], row["label"], row["p_value"], top) == (
                result.error,
                None,
                None,
                [],
            )
        else:
            assert row["p_value"] == pytest.approx(result.p_value, abs=0.02)
            assert top == [(name, pytest.approx(p, abs=1e-4)) for name, p in result.top]
    plain = isomax("score", model, photos / "ash", "--json")
    assert set(json.loads(plain.stdout.splitlines()[0])) == set(rows[0]) - {"top"}


def test_a_folder_without_images_is_named(isomax, compared, tmp_path):
    (tmp_path / "notes.txt").touch()
    run = isomax("score", compared.output / "model.onnx", tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == (
        f"isomax: no images in {tmp_path}; left out: file ending in .txt: 1 "
        f"({tmp_path}/notes.txt)\n"
    )


def test_what_is_not_scored_is_named(compared, photos, tmp_path):
    shutil.copy(photos / "ash" / "000.jpg", tmp_path)
    for name in ("a.HEIC", "b.avif", "c"):
        (tmp_path / name).touch()
    run = CliRunner().invoke(app, ["score", str(compared.output / "model.onnx"), str(tmp_path)])
    assert run.exit_code == 0
    assert len(run.stdout.splitlines()) == 2
    for named in (".heic, to be saved as PNG or JPEG: 1 (", "/b.avif)", "without an ending: 1 ("):
        assert named in run.stderr


def test_compare_resumes_and_logs_to_mlflow(isomax, compared, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(compared.output, output)
    run = isomax("compare", "--losses", "softmax,isomax", "--seeds", 2, "--epochs", 2,
                 "--output", output)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "EntropicScore" in run.stdout
    command = run.stdout.splitlines()[-1]
    assert command.startswith("MLflow: mlflow ui --backend-store-uri sqlite:///")
    client = mlflow.MlflowClient(tracking_uri=command.rpartition(" ")[2])
    (experiment,) = client.search_experiments(filter_string="name = 'isomax'")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {
        "out",
        *(f"{loss}-seed{s}" for loss in ("softmax", "isomax") for s in (0, 1)),
    }
    child = runs["isomax-seed0"]
    assert child.data.tags["mlflow.parentRunId"] == runs["out"].info.run_id
    assert child.data.params["loss"] == "isomax"
    history = client.get_metric_history(child.info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2]
    assert "AUROC/uniform-noise/EntropicScore" in child.data.metrics
    artifacts = {item.path for item in client.list_artifacts(runs["out"].info.run_id)}
    assert {"report.html", "results.csv", "results.json", "plots"} <= artifacts
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert (model.name, model.source_run_id) == ("model", runs["out"].info.run_id)
    datasets = {
        (tag.value, used.dataset.name, json.loads(used.dataset.profile)["num_rows"])
        for used in runs["out"].inputs.dataset_inputs
        for tag in used.tags
    }
    assert ("ood", "uniform-noise", 500) in datasets
    assert {split for split, _, _ in datasets} == {"train", "test", "ood"}
    assert child.data.tags["version.torch"] == importlib.metadata.version("torch")
    assert (child.data.tags["seed"], child.info.status) == ("0", "FINISHED")
    assert {"model"} <= {item.path for item in client.list_artifacts(child.info.run_id)}
    # again: nothing twice
    again = isomax("track", output)
    assert again.returncode == 0, again.stderr
    assert "(nothing new)" in again.stdout
    assert len(client.search_runs([experiment.experiment_id])) == len(runs)
    history = client.get_metric_history(child.info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2]


def test_train_without_the_server_then_send_and_register(isomax, tmp_path, photos, monkeypatch):
    server = tracking_server(tmp_path)
    output, client = tmp_path / "out", mlflow.MlflowClient(tracking_uri=server.uri)
    environment = {
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    arguments = (
        "train", "--data", photos, "--model", "test_resnet", "--epochs", 2, "--image-size", 32,
        "--alpha", 0.2, "--batch-size", 16, "--output", output, "--register", "trees",
    )  # fmt: skip
    run = isomax(*arguments, **environment)
    assert run.returncode == 2
    assert f"isomax: MLflow at {server.uri} does not answer" in run.stderr
    assert not output.exists()
    run = isomax(*arguments, "--offline-ok", **environment, cwd=Path(__file__).parent)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("isomax: ") == 1
    assert run.stdout.splitlines()[-1].endswith(f"send the rest with: isomax track {output}")
    try:
        server.start()
        for _ in range(2):
            run = isomax("track", output, **environment)
            assert run.returncode == 0, run.stderr
            (version,) = client.search_model_versions("name = 'trees'")
        assert client.get_model_version_by_alias("trees", "candidate").version == version.version
        sent = client.get_run(version.run_id)
        summary = json.loads((output / "summary.json").read_text())
        assert sent.data.metrics["test_accuracy"] == summary["test_accuracy"]
        assert float(version.tags["test_accuracy"]) == pytest.approx(summary["test_accuracy"])
        model = client.get_logged_model(version.source.rpartition("/")[2])
        assert {metric.key for metric in model.metrics} >= {"test_accuracy"}
        history = client.get_metric_history(version.run_id, "train_loss")
        assert [metric.step for metric in history] == [1, 2]
        if git := shutil.which("git"):
            commit = subprocess.run(
                [git, "rev-parse", "HEAD"],
                cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert sent.data.tags.get("mlflow.source.git.commit", "") == commit.stdout.strip()
        scores = isomax("score", output / "model.onnx", photos / "ash")
        assert scores.returncode == 0, scores.stderr
    finally:
        server.kill()


def test_training_goes_on_when_its_server_is_killed(isomax, tmp_path, photos):
    server = tracking_server(tmp_path).start()
    output, client = tmp_path / "out", mlflow.MlflowClient(tracking_uri=server.uri)
    environment = {
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.2",
    }
    epochs = 40

    def history():
        runs = [
            run
            for e in client.search_experiments()
            for run in client.search_runs([e.experiment_id])
        ]
        return [m for run in runs for m in client.get_metric_history(run.info.run_id, "train_loss")]

    try:
        with ThreadPoolExecutor() as pool:
            training = pool.submit(
                isomax, "train", "--data", photos, "--model", "test_resnet", "--image-size", 32,
                "--epochs", epochs, "--batch-size", 16, "--alpha", 0.2, "--output", output,
                **environment,
            )  # fmt: skip
            while not training.done() and not history():
                time.sleep(0.2)
            server.kill()
            assert not training.done()  # in the middle of it
            run = training.result()
        assert run.returncode == 0, run.stderr
        assert run.stderr.count("isomax: ") == 1
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
        assert (output / "model" / "model.safetensors").is_file()
        server.start()
        for _ in range(2):
            run = isomax("track", output, **environment)
            assert run.returncode == 0, run.stderr
            sent = [(metric.step, metric.value) for metric in history()]
            assert sent == [(row["epoch"], row["train_loss"]) for row in rows]
    finally:
        server.kill()


def test_register_is_refused_before_training(isomax, tmp_path, photos):
    for options, message in (
        (("--register", "a/b"), "no model can be registered as 'a/b'"),
        (("--register", "a", "--no-track"), "leave --no-track out"),
    ):
        run = isomax("train", "--data", photos, "--output", tmp_path / "out", *options)
        assert run.returncode == 2
        assert message in run.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("isomax_evaluation.training.jobs.attach", "train --data digits --no-track --output {out}"),
        ("isomax_evaluation.data.datasets.scan",
         "train --data {out} --no-track --output {out}-run"),
        ("isomax_evaluation.detection.opening.match_classes",
         "compare --models {model} --detectors MaxLogit --no-track --output {out}"),
        ("isomax_evaluation.deployment.calibrating.equip",
         "calibrate {model} --id digits --output {out}"),
        ("isomax_adapters.onnx.exporting.open_folder", "export {model} {out}/m.onnx"),
        ("isomax_adapters.timm.importing.load_weights",
         "import {model}/model.safetensors {out} --model test_resnet"),
    ],
)  # fmt: skip
def test_a_defect_of_ours_is_a_traceback_and_how_to_report_it(
    where, command, compared, tmp_path, monkeypatch, capsys
):
    def broken(*args, **kwargs):
        raise ValueError("of ours")

    (tmp_path / "out").mkdir()
    model = compared.output / "runs/softmax-seed0/model"
    arguments = command.format(out=tmp_path / "out", model=model).split()
    importlib.import_module(where.rpartition(".")[0])
    monkeypatch.setattr(where, broken)
    monkeypatch.setattr("sys.argv", ["isomax", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    *_, raised, last = capsys.readouterr().err.splitlines()
    assert raised == "ValueError: of ours"
    assert last.startswith("isomax: a defect of isomax, not a mistake of yours; please report it")
    assert "isomax --version" in last


def test_train_then_export_then_score(isomax, tmp_path, photos):
    output = tmp_path / "out"
    run = isomax(
        "train", "--data", photos, "--model", "test_resnet", "--epochs", 2, "--image-size", 32,
        "--alpha", 0.2, "--batch-size", 16, "--output", output, "--no-track",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    accuracy = json.loads((output / "summary.json").read_text())["test_accuracy"]
    assert re.fullmatch(f"accuracy +{accuracy:.1%}", said[0])
    assert f"each class: {output / 'classes.csv'}" in said
    assert len(said) < 15
    assert said[-1] == f"next: isomax export {output / 'model'} model.onnx"
    run = isomax("export", output, tmp_path / "model.onnx")
    assert run.returncode == 0, run.stderr
    run = isomax("score", tmp_path / "model.onnx", photos)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 121


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--model", "resnet81"], "did you mean resnet18"),
        (["compare", "--id", "/no/such/folder", "--ood", "uniform-noise"], "no dataset or folder"),
        (["compare", "--recipe", "secret"], "unknown recipe 'secret'"),
        (["train", "--data", "{one}"], "has one class (only)"),
        (["train", "--data", "{bad}", "--seed", "-3"], "the seed is -3; expected 0 to 4294967295"),
        (["train", "--data", "{bad}", "--seed", "4294967296"], "the seed is 4294967296; expected"),
        (["train", "--data", "{bad}", "--model", "resnet18.nonesuch"], "no weights 'nonesuch' of"),
        (
            ["train", "--data", "{bad}", "--image-size", "0"],
            "image_size is 0; expected a number",
        ),
        (["train", "--data", "{bad}", "--val-share", "1"], "validation images is 1.0"),
        (
            ["train", "--data", "{bad}", "--alpha", "0.4", "--val-share", "0.5"],
            "1 of 13 images of bad do not decode: ",
        ),
        (["compare", "--output", "{one}"], "holds no run of isomax"),
        (
            ["compare", "--ood", "{bad}", "--output", "{bad}/out"],
            "the output folder {bad}/out lies in {bad}",
        ),
        (["score", "{junk}", "{junk}"], "is not an ONNX model"),
        (
            ["score", "{junk}", "{junk}", "--json", "--out", "a.csv"],
            "--json is for what is printed",
        ),
        (["score", "{junk}", "{junk}", "--top", "5", "--out", "a.csv"], "--top 5 is for what is"),
        (["score", "{junk}", "/no/such/image"], "no such file or folder: /no/such/image"),
        (["export", "{one}", "model.onnx"], "has no config.json"),
        (["export", "{one}/none", "model.onnx"], "there is no folder {one}/none"),
        (["score", "{one}", "{one}"], "{one} is a folder; isomax export makes a file"),
        (["export", "{one}", "{empty}"], "{empty} is a folder; give the name of the file"),
        (["export", "{one}", "{junk}/m.onnx"], "lies below {junk}, which is no folder"),
        (["export", "{one}", "model.onnx", "--precision", "int4"], "choose from fp32, fp16, int8"),
        (["export", "{one}", "model.onnx", "--precision", "int8"], "int8 takes --id too"),
        (["export", "{one}", "model.onnx", "--ood", "{bad}"], "--ood takes --id too"),
        (
            ["export", "{one}", "model.onnx", "--calibration", "{bad}"],
            "--calibration takes --id too",
        ),
        (
            ["export", "{one}", "model.onnx", "--id", "{bad}", "--calibration", "{bad}"],
            "--calibration is for fp16 and int8",
        ),
        (["track", "{one}"], "is no output folder"),
        (["compare", "--seeds", "0"], "seeds is 0; expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_costs_nothing(isomax, tmp_path, arguments, message):
    names = ("one", "bad", "empty", "junk.onnx")
    places = {Path(name).stem: tmp_path / name for name in names}
    places["empty"].mkdir()
    make_folder(places["one"], ("only",), 4)
    make_folder(places["bad"], ("a", "b"), 6)
    (places["bad"] / "a" / "zero.jpg").touch()
    places["junk"].write_bytes(b"junk")
    arguments = [argument.format(**places) for argument in arguments]
    run = isomax(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    lines = [line for line in run.stderr.splitlines() if line.startswith("isomax: ")]
    assert len(lines) == 1
    assert message.format(**places) in lines[0]
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_training_that_loses_an_image_half_way_goes_on_when_it_is_back(isomax, tmp_path):
    """One line, nothing lost: also of a class whose name has brackets."""
    root = make_folder(tmp_path / "set", ("ash", "b [old]"), 20)
    gone, kept = sorted((root / "b [old]").iterdir())[5:], tmp_path / "kept"
    kept.mkdir()
    arguments = (
        *("train", "--data", root, "--output", tmp_path / "out", "--model", "test_resnet"),
        *("--recipe", "digits", "--epochs", 40, "--batch-size", 16, "--image-size", "32,32"),
        *("--alpha", 0.5, "--workers", 1, "--no-track", "--keep", "last"),
    )

    def lose():
        while not (tmp_path / "out/checkpoint.pt").exists():
            time.sleep(0.05)
        for path in gone:  # the model is trained on some of these
            shutil.move(path, kept)

    with ThreadPoolExecutor(1) as pool:
        losing = pool.submit(lose)
        run = isomax(*arguments)
        losing.result()
    assert run.returncode == 2, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("isomax: ")]
    assert re.search(r"b \[old\]/\d+\.jpg cannot be read: FileNotFoundError", line)
    assert "Traceback" not in run.stderr
    done = len((tmp_path / "out/metrics.jsonl").read_text().splitlines())
    assert 0 < done < 40
    without = isomax(*arguments)
    assert without.returncode == 2
    assert "images of" in without.stderr
    assert "have changed since" in without.stderr
    for path in kept.iterdir():
        shutil.move(path, gone[0].parent)
    again = isomax(*arguments)
    assert again.returncode == 0, again.stderr
    assert f"epoch {done} of 40" not in again.stderr
    assert "b [old]," in (tmp_path / "out/classes.csv").read_text()


def test_version_and_lists(isomax):
    run = isomax("--version")
    assert (run.returncode, run.stdout) == (0, f"isomax {importlib.metadata.version('isomax')}\n")
    for what, some in (
        ("recipes", "finetune-transformer"),
        ("losses", "dismax+fpr"),
        ("datasets", "digits-held-out"),
        ("benchmarks", "CIFAR10_OpenOOD"),
        ("providers", "CPUExecutionProvider"),
    ):
        run = isomax("list", what)
        assert some in [line.split()[0] for line in run.stdout.splitlines()], run.stderr
    rows = [line.split() for line in isomax("list", "detectors").stdout.splitlines()[1:]]
    assert ["ODIN", "image", "no"] in [row[:3] for row in rows]
    assert ["ViM", "features", "yes"] in [row[:3] for row in rows]
    assert ["MinimumDistanceScore", "logits", "yes"] in [row[:3] for row in rows]


def test_a_list_that_is_too_wide_becomes_a_block_per_name(capsys):
    table = Table("detector", "scores", "what it is given")
    table.add_row("ViM", "features", "pooled features, " * 8)
    table.add_row("MCM", "", "")
    print_blocks(table, Console(width=80, color_system=None))
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert (first, second.strip(), last.strip()) == ("ViM", "scores: features", "MCM")


def test_a_backbone_that_is_frozen_for_all_epochs_leaves_the_head_alone():
    frozen = recipe_of("finetune", {"freeze_backbone": "all", "epochs": 5})
    assert frozen == recipe_of("finetune", {"epochs": 0})
    assert recipe_of("finetune", {"freeze_backbone": "2"}).freeze_backbone == 2
    with pytest.raises(InputError, match="expected a number of epochs, or all"):
        recipe_of("finetune", {"freeze_backbone": "some"})


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_that_is_too_wide_becomes_blocks(compared, width, capsys):
    table = of_comparison(compared.results, compared.intervals, compared.costs)
    console = Console(width=width, color_system=None)
    print_blocks(table, console)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for column in ("accuracy", "AUROC", "AUPR-IN", "FPR95TPR", "passes", "time"):
        assert text.count(f"{column}: ") >= table.row_count
    print_table(table)  # into a pipe: as wide as it is
    piped = capsys.readouterr().out.splitlines()
    assert max(map(len, piped)) > width
    assert not any("…" in line for line in piped)
