"""The same model on Spark: ``tox -e spark``; takes PySpark and a Java runtime."""

import base64
import os
import sys

import mlflow
import pytest

pyspark = pytest.importorskip("pyspark", reason="runs in tox -e spark")

from isomax_adapters import mlflow as isomax_mlflow  # noqa: E402
from isomax_adapters.runtime.scorer import Scorer  # noqa: E402

from .images import bad_images, good_images  # noqa: E402


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = sys.executable  # not the first python3 on the path
    session = (
        pyspark.sql.SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "3")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.mark.parametrize("alpha", [None, 0.01])
def test_spark_says_what_the_scorer_says(spark, model_path, tmp_path, alpha):
    isomax_mlflow.save_model(model_path, tmp_path / "model")
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(
        [*good_images(22), *filter(None, bad_images())]
    ):  # Spark skips empty files
        (folder / f"{index:02}.jpg").write_bytes(image)
    score = mlflow.pyfunc.spark_udf(
        spark,
        str(tmp_path / "model"),
        env_manager="local",
        params={"alpha": alpha} if alpha else None,
    )
    images = spark.read.format("binaryFile").load(str(folder)).repartition(4)
    assert images.rdd.getNumPartitions() == 4
    rows = images.select("path", score("content").alias("answer")).select("path", "answer.*")
    answers = sorted(tuple(row) for row in rows.collect())

    results = Scorer(model_path, alpha=alpha).score(
        [path.read_bytes() for path in sorted(folder.iterdir())], batch_size=1
    )
    assert len(answers) == len(results) == 24
    for (path, *answer), result, file in zip(
        answers, results, sorted(folder.iterdir()), strict=True
    ):
        assert path == file.as_uri().replace("file:///", "file:/")
        assert answer == [
            result.label,
            result.class_name,
            None if result.error else result.confidence,
            None if result.error else result.score,
            None if result.error else result.p_value,
            result.is_ood,
            result.error,
        ]


def test_a_broken_row_is_one_row(spark, model_path, tmp_path):
    isomax_mlflow.save_model(model_path, tmp_path / "model")
    texts = [base64.b64encode(image).decode() for image in good_images(8)]
    wrong = {3: "%%%a", 5: None}
    rows = [(number, wrong.get(number, text)) for number, text in enumerate(texts)]
    table = spark.createDataFrame(rows, "number long, image string").repartition(3)
    score = mlflow.pyfunc.spark_udf(
        spark, str(tmp_path / "model"), env_manager="local", extra_env={"ISOMAX_THREADS": "1"}
    )
    found = table.filter("number > 0").select("number", score("image").alias("answer"))
    answers = {row.number: row.answer for row in found.collect()}
    assert sorted(answers) == list(range(1, 8))
    for number, result in enumerate(Scorer(model_path).score(good_images(8), batch_size=1)):
        if number in wrong:
            assert answers[number].error
            assert answers[number].score is None
        elif number:
            assert (answers[number].error, answers[number].score) == ("", result.score)
