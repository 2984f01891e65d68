"""The same model on Spark: ``tox -e spark``; takes PySpark and a Java runtime."""

import os
import sys

import mlflow
import pytest

pyspark = pytest.importorskip("pyspark", reason="runs in tox -e spark")

from isomax_adapters import mlflow as isomax_mlflow  # noqa: E402
from isomax_adapters.onnx.runtime import Scorer  # noqa: E402

from ..onnx.conftest import model_path  # noqa: E402, F401
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
def test_spark_says_what_the_scorer_says(spark, model_path, tmp_path, alpha):  # noqa: F811
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
