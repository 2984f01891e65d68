"""Names of any alphabet, of any bytes, under any locale."""

import json
import os
import shutil
import subprocess
import sys

import mlflow
import pytest

from isomax_adapters.mlflow import LiveTracking, TrackingError, track

from .folders import finish

HEADER = "ood,detector,accuracy,ECE,AUROC,AUPR-IN,AUPR-OUT,FPR95TPR\n"
CODE = """
import sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module="isomax_adapters")
from isomax_adapters.mlflow import track
print(ascii(track(sys.argv[1])))
"""


def only_run(uri):
    client = mlflow.MlflowClient(tracking_uri=uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(ids)
    return run


def test_the_locale_changes_nothing(folder):
    finish(folder)
    settings = {"loss": "isomax", "id": "Vögel"}
    (folder / "settings.json").write_text(
        json.dumps(settings, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "results.csv").write_text(
        f"{HEADER}Füchse,Entropic,0.9,0.01,0.8,,,\n", encoding="utf-8"
    )
    # ASCII; and whatever is read or written without an encoding is an error
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", CODE, str(folder)],
        env=os.environ | locale, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = only_run(f"sqlite:///{folder / 'mlflow.db'}")
    assert run.data.metrics["AUROC/Füchse/Entropic"] == 0.8
    assert run.data.params["id"] == "Vögel"


def test_a_folder_whose_name_is_no_utf8(folder, tmp_path, database):
    folder = folder.rename(tmp_path / os.fsdecode(b"o\xffd"))
    for use in (track, LiveTracking):
        with pytest.raises(TrackingError, match=r"o\\udcffd', whose name is not UTF-8; rename"):
            use(folder)
    uri = f"sqlite:///{shutil.copy(database, tmp_path / 'users.db')}"
    for _ in range(2):
        assert track(folder, uri) == uri
    assert only_run(uri).info.run_name == "o_ff_d"


def test_names_that_are_no_utf8(folder, tmp_path, database):
    finish(folder)
    odd = os.fsdecode(b"b\xffd")
    (folder / "settings.json").write_text(json.dumps({"loss": "isomax", "id": odd}))
    content = {"name": odd, "digest": "1", "size": 9, "classes": 3, "source": odd}
    provenance = {
        "command": f"isomax train {odd}", "user": "me", "versions": {}, "git_commit": None,
        "datasets": [content | {"split": "train"}],
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "results.csv").write_bytes(
        HEADER.encode() + b"b\xffd,Entropic,0.9,0.01,0.8,,,\n" + "ü,E,0.9,0.01,0.7,,,\n".encode()
    )
    (folder / "plots" / odd).mkdir(parents=True)
    for name in (b"b\xfed.png", b"b\xffd.png"):
        (folder / "plots" / odd / os.fsdecode(name)).write_bytes(name)
    uri = f"sqlite:///{shutil.copy(database, tmp_path / 'users.db')}"
    for _ in range(2):
        track(folder, uri)
    run = only_run(uri)
    assert run.data.params["id"] == "b_ff_d"
    assert run.data.tags["mlflow.source.name"] == "isomax train b_ff_d"
    assert run.inputs.dataset_inputs[0].dataset.name == "b_ff_d"
    assert run.data.metrics["AUROC/b_d/Entropic"] == 0.8
    assert run.data.metrics["AUROC/ü/E"] == 0.7
    client = mlflow.MlflowClient(tracking_uri=uri)
    files = client.list_artifacts(run.info.run_id, "plots/b_ff_d")
    assert [(file.path, file.file_size) for file in files] == [
        ("plots/b_ff_d/b_fe_d.png", 7),
        ("plots/b_ff_d/b_ff_d.png", 7),
    ]
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/results.json")
    assert [row[0] for row in table["data"]] == ["b_ff_d", "ü"]
