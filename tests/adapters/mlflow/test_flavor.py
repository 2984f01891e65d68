"""The model flavour: saved, loaded, served; the same answers everywhere."""

import base64
import importlib.metadata
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import infer_and_parse_data

from evaluation.benchmarks.promises.serving import load
from isomax_adapters import mlflow as isomax_mlflow
from isomax_adapters.runtime.scorer import ModelError, Scorer

from ..onnx.make_model import build
from .images import bad_images, good_images
from .servers import scoring_server

COLUMNS = ["label", "class_name", "confidence", "score", "p_value", "is_ood", "error"]


@pytest.fixture(scope="module")
def saved(model_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    isomax_mlflow.save_model(model_path, path)
    return str(path)


@pytest.fixture(scope="module")
def images():
    return [*good_images(20), *bad_images()]


def rows_of(scorer, images):
    """What the scorer says of each image, as the other doors put it."""
    results = scorer.score(images, batch_size=1)
    return [
        [r.label, r.class_name, None, None, None, r.is_ood, r.error]
        if r.error
        else [r.label, r.class_name, r.confidence, r.score, r.p_value, r.is_ood, ""]
        for r in results
    ]


def test_loaded_it_is_a_scorer(saved, model_path, images):
    assert rows_of(isomax_mlflow.load_model(saved), images) == rows_of(Scorer(model_path), images)


@pytest.mark.parametrize("channels", [1, 4])
def test_arrays_have_the_channels_of_the_model(channels, tmp_path):
    onnx.save(build(channels=channels), tmp_path / "m.onnx")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, channels), np.uint8)
    isomax_mlflow.save_model(tmp_path / "m.onnx", tmp_path / "m", input_example=images)
    model = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    assert f"(-1, -1, -1, {channels})" in str(model.metadata.signature)
    expected = [row.score for row in Scorer(tmp_path / "m.onnx").score(images)]
    assert model.predict(images)["score"].tolist() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(MlflowException, match=rf"expected uint8 \[N, H, W, {channels}\]"):
        isomax_mlflow._load_pyfunc(str(tmp_path / "m.onnx")).predict(images[..., [0, 0]])


def test_pyfunc_says_the_same(saved, model_path, images):
    model = mlflow.pyfunc.load_model(saved)
    answers = model.predict(pd.DataFrame({"image": images}))
    assert list(answers.columns) == COLUMNS
    assert answers.values.tolist() == rows_of(Scorer(model_path), images)
    careful = model.predict(pd.DataFrame({"image": images}), params={"alpha": 0.01})
    assert careful.values.tolist() == rows_of(Scorer(model_path, alpha=0.01), images)
    assert careful["is_ood"].sum() < answers["is_ood"].sum()
    with pytest.raises(MlflowException, match="more held-out samples"):
        model.predict(pd.DataFrame({"image": images}), params={"alpha": 1e-6})
    with pytest.raises(MlflowException, match=r"missing inputs \['image'\]"):
        model.predict(pd.DataFrame({"picture": images}))


def test_what_an_image_is_sent_with_changes_nothing(saved):
    images = good_images(12)
    model = mlflow.pyfunc.load_model(saved)
    together = model.predict(pd.DataFrame({"image": images}))
    alone = pd.concat(
        [model.predict(pd.DataFrame({"image": [image]})) for image in images], ignore_index=True
    )
    pd.testing.assert_frame_equal(together, alone, check_exact=True)


def test_a_string_is_no_path(saved, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(good_images(1)[0])
    model = mlflow.pyfunc.load_model(saved)
    answers = model.predict(pd.DataFrame({"image": [str(path), None, path.read_bytes()]}))
    assert answers["error"][0].startswith("text that is neither base64 nor a data URL of it: ")
    assert answers["error"][1] == "NoneType, not the bytes of an image"
    assert answers["error"][2] == ""


def test_rows_stay_with_their_images(saved):
    images = good_images(9)
    table = pd.DataFrame({"image": images, "name": list("abcdefghi")})
    model = mlflow.pyfunc.load_model(saved)
    expected = dict(zip(table["name"], model.predict(table[["image"]])["score"], strict=True))
    assert len(set(expected.values())) == 9
    orders = (
        table.sample(frac=1, random_state=0),
        table[3:7],
        table.set_index("name", drop=False),
        pd.concat([table, table[:4]]),  # labels that are there twice
    )
    for rows in orders:
        rows = rows.copy()
        rows["score"] = model.predict(rows[["image"]])["score"]
        assert rows["score"].tolist() == [expected[name] for name in rows["name"]]
    broken = table.sample(frac=1, random_state=1)
    broken.loc[broken.index[4], "image"] = b"not an image"
    answers = model.predict(broken[["image"]])
    assert answers.index.equals(broken.index)
    assert answers.index[answers["error"] != ""].tolist() == [broken.index[4]]
    # a list of results, in the order of the values
    results = isomax_mlflow.load_model(saved).score(orders[0]["image"])
    assert [row.score for row in results] == pytest.approx(
        [expected[name] for name in orders[0]["name"]], rel=1e-5
    )


def test_text_is_base64_or_a_data_url(saved):
    image = good_images(1)[0]
    text = base64.b64encode(image).decode()
    model = mlflow.pyfunc.load_model(saved)
    good = [image, text, f"data:image/jpeg;base64,{text}", f"DATA:;BASE64,{text}"]
    good.append(base64.encodebytes(image).decode())
    answers = model.predict(pd.DataFrame({"image": good}))
    assert (answers == answers.iloc[0]).all(axis=None)
    assert answers["error"][0] == ""
    bad = ["data:image/png,%89PNG", "data:image/png;base64,%%%", text[:-1] + "!", "data:"]
    answers = model.predict(pd.DataFrame({"image": bad}))
    assert answers["error"][0] == ("a URL that begins with 'data:image/png,', not with base64 data")
    for error in answers["error"][1:]:
        assert error.startswith("text that is neither base64 nor a data URL of it: ")
    assert answers["is_ood"].all()


def test_an_alpha_of_null_is_named(saved):
    model = mlflow.pyfunc.load_model(saved)
    table = pd.DataFrame({"image": good_images(1)})
    with pytest.raises(MlflowException, match=r"^alpha is null; expected a fraction"):
        model.predict(table, params={"alpha": None})


def test_threads_and_providers_come_from_the_environment_or_the_caller(saved, monkeypatch):
    monkeypatch.setenv("ISOMAX_THREADS", "3")
    monkeypatch.setenv("ISOMAX_PROVIDERS", "NoProvider, CPUExecutionProvider")
    for load_model in (isomax_mlflow.load_model, mlflow.pyfunc.load_model):
        with pytest.raises(ValueError, match="has no 'NoProvider'"):
            load_model(saved)
    scorer = isomax_mlflow.load_model(saved, providers="CPUExecutionProvider")
    assert scorer.threads == 3
    monkeypatch.setenv("ISOMAX_PROVIDERS", "CPUExecutionProvider,")
    scorer = mlflow.pyfunc.load_model(saved).get_raw_model()
    assert scorer.session.get_providers() == ["CPUExecutionProvider"]
    assert scorer.session.get_session_options().intra_op_num_threads == scorer.threads == 3
    assert isomax_mlflow.load_model(saved, threads=2).threads == 2
    for wrong in ("0", "two", "-1", "1.5"):
        monkeypatch.setenv("ISOMAX_THREADS", wrong)
        with pytest.raises(MlflowException, match=f"^ISOMAX_THREADS is '{wrong}'; expected"):
            mlflow.pyfunc.load_model(saved)


def test_tensors(model_path, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    isomax_mlflow.save_model(model_path, tmp_path / "model", input_example=pixels[:1])
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert model.predict(pixels).values.tolist() == rows_of(Scorer(model_path), list(pixels))
    with pytest.raises(MlflowException, match="schema"):
        model.predict(pixels.astype(np.float32))
    with pytest.raises(MlflowException, match="300 out of bounds for uint8"):
        infer_and_parse_data({"inputs": [[[[300, 0, 0]]]]}, model.metadata.get_input_schema())


def test_what_is_saved_says_what_it_takes_and_needs(saved):
    signature = mlflow.models.get_model_info(saved).signature
    assert signature.inputs.to_dict() == [{"type": "string", "name": "image", "required": True}]
    assert [column.name for column in signature.outputs.inputs] == COLUMNS
    missing = [column.name for column in signature.outputs.inputs if not column.required]
    assert missing == ["confidence", "score", "p_value"]
    (alpha,) = signature.params.to_dict()
    assert (alpha["name"], alpha["default"]) == ("alpha", 0.05)
    with open(f"{saved}/requirements.txt") as file:
        requirements = file.read().split()
    names = ("mlflow", "numpy", "onnxruntime", "pillow")
    assert requirements == [f"{name}=={importlib.metadata.version(name)}" for name in names]
    with open(f"{saved}/conda.yaml") as file:
        conda = file.read()
    assert all(requirement in conda for requirement in requirements)
    assert "torch" not in conda
    files = [name for _, _, names in os.walk(saved) for name in names]
    assert {name.rpartition(".")[2] for name in files} == {
        *("onnx", "py", "yaml", "txt", "json", "MLmodel"),
    }  # fmt: skip
    code = Path(saved) / "code"
    carried = {file.relative_to(code).parts[:2] for file in code.rglob("*.py")}
    assert carried == {("isomax_adapters", "__init__.py"), ("isomax_adapters", "runtime")}
    example = mlflow.pyfunc.load_model(saved).input_example
    assert mlflow.pyfunc.load_model(saved).predict(example)["error"][0] == ""


def test_what_was_not_exported_is_not_saved(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ModelError):
        isomax_mlflow.save_model(tmp_path / "junk.onnx", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_it_loads_from_its_own_code_without_torch_and_isomax(saved, tmp_path):
    (tmp_path / "image.png").write_bytes(good_images(1)[0])
    code = (
        "import sys, mlflow, pandas as pd\n"
        "sys.path = [p for p in sys.path if not p.rstrip('/').endswith(('/plugin', '/adapters'))]\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "answer = model.predict(pd.DataFrame({'image': [open(sys.argv[2], 'rb').read()]}))\n"
        "assert answer['error'][0] == '', answer\n"
        "import isomax_adapters; assert isomax_adapters.__file__.startswith(sys.argv[1])\n"
        "heavy = {'torch', 'timm', 'isomax', 'onnx', 'pytorch_ood'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, saved, str(tmp_path / "image.png")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_what_it_does_not_carry_is_found_where_isomax_is_installed(saved):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1] + '/code')\n"
        "import isomax_adapters.runtime, isomax_adapters.extras\n"
        "print(isomax_adapters.runtime.__file__.startswith(sys.argv[1]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, saved], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout.strip()) == (0, "True"), run.stderr


def test_served_from_the_registry(model_path, images, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        experiment = mlflow.create_experiment("birds", (tmp_path / "artifacts").as_uri())
        with mlflow.start_run(experiment_id=experiment):
            isomax_mlflow.log_model(model_path, name="model", registered_model_name="birds")
        client.set_registered_model_alias("birds", "champion", 1)
        loaded = isomax_mlflow.load_model("models:/birds@champion")
        assert rows_of(loaded, images) == rows_of(Scorer(model_path), images)
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # set by MLflow
    server = scoring_server(tmp_path, "models:/birds@champion", MLFLOW_TRACKING_URI=uri)
    try:
        server.start()
        encoded = [base64.b64encode(image).decode() for image in images]
        content = {"dataframe_split": {"columns": ["image"], "data": [[e] for e in encoded]}}
        answers = invoke(server.uri, content)["predictions"]
        assert [list(a.values()) for a in answers] == rows_of(Scorer(model_path), images)
        careful = invoke(server.uri, content | {"params": {"alpha": 0.01}})["predictions"]
        expected = rows_of(Scorer(model_path, alpha=0.01), images)
        assert [list(a.values()) for a in careful] == expected
        for otherwise in (
            {"inputs": {"image": encoded[:2]}},
            {"instances": [{"image": encoded[0]}, {"image": encoded[1]}]},
        ):
            assert invoke(server.uri, otherwise)["predictions"] == answers[:2]
        # what is wrong with one image is said in its row
        data = [[encoded[0]], ["%%%a"], [7], [None], [f"data:image/png;base64,{encoded[1]}"]]
        mixed = {"dataframe_split": {"columns": ["image"], "data": data}}
        first, *wrong, last = invoke(server.uri, mixed)["predictions"]
        assert [first, last] == answers[:2]
        assert [row["error"].partition(":")[0] for row in wrong] == [
            "text that is neither base64 nor a data URL of it",
            "int, not the bytes of an image",
            "NoneType, not the bytes of an image",
        ]
        for bad in (
            {"dataframe_split": {"columns": ["picture"], "data": [[encoded[0]]]}},
            content | {"params": {"alpha": 3}},
            content | {"params": {"alpha": None}},
            {"nothing": 1},
        ):
            with pytest.raises(urllib.error.HTTPError) as error:
                invoke(server.uri, bad)
            assert error.value.code == 400
        assert invoke(server.uri, content)["predictions"] == answers
        outcome = load(server, model_path, count=80, clients=8)
        assert not outcome.problems
        assert sum(outcome.bad.values()) == 8
    finally:
        server.kill()


def invoke(uri, content):
    request = urllib.request.Request(
        f"{uri}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        # strictly JSON: no NaN
        return json.loads(response.read(), parse_constant=pytest.fail)
