"""One whole comparison on the digits, looked at from all sides."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import pytorch_ood.detector as ood
import timm
import torch
from pytorch_ood.benchmark import Benchmark
from rich.console import Console
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score

from isomax import EntropicScore, MahalanobisPP
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import load_calibration, load_model
from isomax_evaluation import compare, data
from isomax_evaluation.cli.tables import of_comparison
from isomax_evaluation.comparison.report.plots import ID, write_plots
from isomax_evaluation.comparison.report.rows import needs, table_rows, verdicts
from isomax_evaluation.data.settings import Preprocessing
from isomax_evaluation.detection.testing.intervals import draw, resampled_metrics
from isomax_evaluation.detection.testing.metrics import METRICS, ood_metrics
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import RECIPES
from isomax_evaluation.training.source import Source

from ...image_folders import make_folder
from ...settings import grouped
from ..killing import comparison, in_own_process
from .scores import read_scores

SHORT = replace(RECIPES["digits"], epochs=2)


def test_the_table_has_every_cell(compared):
    results = compared.results
    assert set(results["loss"]) == {"softmax", "isomax"}
    assert set(results["seed"]) == {0, 1}
    assert set(results["ood"]) == {"digits-held-out", "uniform-noise"}
    asked = set(json.loads((compared.output / "settings.json").read_text())["detectors"])
    by_loss = {loss: set(rows["detector"]) for loss, rows in results.groupby("loss")}
    assert by_loss["softmax"] == asked - {"EntropicScore"}
    assert by_loss["isomax"] == asked - {"Entropy"}
    assert len(results) == (6 + 6) * 2 * 2
    assert not results.isna().any().any()
    assert pd.read_csv(compared.output / "results.csv").equals(results.reset_index(drop=True))
    left = {(row.loss, row.detector) for row in compared.left_out.itertuples()}
    assert left == {("softmax", "EntropicScore"), ("isomax", "Entropy")}


def test_auroc_equals_scikit_learns_from_the_saved_scores(compared):
    for row in compared.results.itertuples():
        folder = compared.output / f"runs/{row.loss}-seed{row.seed}"
        known, unknown = (read_scores(folder, name)[row.detector] for name in ("digits", row.ood))
        values = np.concatenate([known, unknown])
        truth = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
        assert pytest.approx(roc_auc_score(truth, values), abs=1e-9) == row.AUROC
        # AUPR is an area by trapezoids
        precision, recall, _ = precision_recall_curve(truth, values)
        out = compared.results.loc[row.Index, "AUPR-OUT"]
        assert pytest.approx(auc(recall, precision), abs=1e-6) == out


def test_training_lowered_the_loss(compared):
    for path in compared.output.glob("runs/*/metrics.jsonl"):
        epochs = [json.loads(line) for line in path.read_text().splitlines()]
        assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert compared.results["accuracy"].min() > 0.5


def test_losses_of_a_seed_share_backbone_and_batches(compared, tmp_path):
    from isomax_evaluation.training.batches import EpochBatches
    from isomax_evaluation.training.jobs import Job, build_model

    job = Job(Source("test_resnet"), "softmax", RECIPES["digits"], seed=3)
    softmax = build_model(job, 5).state_dict()
    isomax = build_model(
        Job(Source("test_resnet"), "isomax", RECIPES["digits"], seed=3), 5
    ).state_dict()
    shared = set(softmax) & set(isomax)
    assert set(softmax) ^ set(isomax) == {"fc.weight", "fc.bias", "fc.prototypes"}
    assert all(torch.equal(softmax[name], isomax[name]) for name in shared)
    first, again, other = (list(EpochBatches(100, 10, seed, 0, 1, 1)) for seed in (3, 3, 4))
    assert first == again != other


def test_costs_count_passes(compared):
    costs = compared.costs.set_index(["loss", "detector"])
    assert tuple(costs.loc[("isomax", "EntropicScore"), ["forward", "backward"]]) == (1, 0)
    assert tuple(costs.loc[("softmax", "Mahalanobis"), ["forward", "backward"]]) == (1, 0)
    assert tuple(costs.loc[("softmax", "ODIN"), ["forward", "backward"]]) == (2, 1)
    assert (costs["ms_per_image"] > 0).all()


def test_the_output_folder_is_complete(compared):
    for name in (
        "results.csv",
        "costs.csv",
        "report.html",
        "model.onnx",
        "settings.json",
        "plots/roc.png",
        "plots/scores.png",
    ):
        assert (compared.output / name).stat().st_size > 0
    for loss in ("softmax", "isomax"):
        for seed in (0, 1):
            folder = compared.output / "runs" / f"{loss}-seed{seed}"
            assert load_calibration(folder / "model") is not None
            assert load_model(folder / "model").pretrained_cfg["label_names"] == list("0123456")


def test_the_onnx_file_scores_as_the_model_does(compared):
    exported = json.loads((compared.output / "model.json").read_text())["exported"]
    assert exported == "isomax-seed0"
    folder = compared.output / "runs" / exported / "model"
    model = load_model(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    test = data.open_splits("digits").test
    images = [test.image(position) for position in range(len(test))]
    with torch.no_grad():
        batch = torch.stack([transform(image) for image in images])
        scores = EntropicScore(model)(batch)
        labels = model(batch).argmax(dim=1)
    scorer = Scorer(compared.output / "model.onnx")
    results = scorer.score([np.asarray(image) for image in images])
    assert [r.label for r in results] == labels.tolist()
    np.testing.assert_allclose([r.score for r in results], scores, rtol=0, atol=1e-4)
    assert scorer.metadata["guarantee"] == "established"
    threshold = load_calibration(folder).threshold
    assert scorer.threshold == pytest.approx(threshold, abs=1e-4)
    assert [r.is_ood for r in results] == [r.score > np.float32(scorer.threshold) for r in results]


def test_the_report_is_one_file_that_names_everything(compared):
    html = (compared.output / "report.html").read_text()
    for word in ("digits-held-out", "EntropicScore", "Mahalanobis", "FPR95TPR", "data:image/png"):
        assert word in html
    # nothing is loaded from elsewhere
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.https?:", html)


def test_the_report_begins_with_the_best_row_of_each_set(compared):
    results, html = compared.results, (compared.output / "report.html").read_text()
    for place in verdicts(table_rows(results, compared.intervals, compared.costs)):
        mine = results[results["ood"] == place["ood"]]
        mean = 100 * mine.groupby(["loss", "detector"])["AUROC"].mean()
        best = place["best"]
        assert best["AUROC"] == pytest.approx(mean.max())
        assert mean[best["loss"], best["detector"]] == pytest.approx(mean.max())
        assert f"{best['detector']} on {best['loss']}, AUROC {mean.max():.1f}%" in html
        if (best["loss"], best["detector"]) != ("softmax", "MaxSoftmax"):
            assert f"MaxSoftmax on softmax: {mean['softmax', 'MaxSoftmax']:.1f}%" in html


def test_the_reports_rows_are_those_of_each_set_the_best_first(compared):
    html = (compared.output / "report.html").read_text()
    body = html.partition('<table id="results">')[2].partition("</table>")[0].replace("<wbr>", "")
    cells = re.findall(
        r'<td class="text">(.*?)</td><td class="text">(.*?)</td><td class="text">(.*?)</td>\s*'
        r'<td data-value="(.*?)"',
        body,
    )
    assert {(ood, loss, detector) for ood, loss, detector, _ in cells} == set(
        compared.results[["ood", "loss", "detector"]].itertuples(index=False, name=None)
    )
    for name in compared.results["ood"].unique():
        values = [float(auroc) for ood, _, _, auroc in cells if ood == name]
        assert values == sorted(values, reverse=True)


def test_what_is_no_better_than_guessing_is_no_verdict():
    row = {"ood": "noise", "loss": "given", "detector": "KNN", "AUROC": 50.0}
    failed = row | {"detector": "ViM", "AUROC": float("nan")}
    assert verdicts([row, failed]) == [{"ood": "noise", "best": None, "baseline": None}]
    better = row | {"detector": "ViM", "AUROC": 60.0}
    plain = row | {"detector": "MaxSoftmax", "AUROC": 40.0}
    assert verdicts([plain, better]) == [{"ood": "noise", "best": better, "baseline": plain}]
    assert verdicts([plain | {"AUROC": 70.0}])[0]["baseline"] is None


@pytest.mark.skipif(not shutil.which("chromium"), reason="takes Chromium")
def test_the_report_works_in_a_browser(compared, tmp_path):
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync"),
            *("--disable-background-networking", f"--user-data-dir={tmp_path}", "--dump-dom"),
            f"file://{compared.output / 'report.html'}",
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    rates = re.search(r'<p id="rates"[^>]*>([^<]*)</p>', done.stdout).group(1)
    known = float(re.search(r"([\d.]+)% of ID rejected", rates).group(1))
    assert 3 < known < 7  # the slider starts at the 95th percentile
    assert "% of digits-held-out rejected" in rates
    for plot in ("histogram", "roc", "scatter"):
        assert re.search(rf'id="{plot}"[^>]*class="[^"]*js-plotly-plot', done.stdout)


def test_the_table_prints_mean_and_spread(compared):
    console = Console(width=170, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(of_comparison(compared.results, compared.intervals, compared.costs))
    text = console.export_text()
    chosen = compared.results.query(
        "loss == 'isomax' and detector == 'EntropicScore' and ood == 'uniform-noise'"
    )
    mean = 100 * chosen["AUROC"].mean()
    assert f"{mean:.1f} ±" in text
    assert "*" in text


def test_one_seed_has_no_spread_and_a_time_has_its_own(compared):
    alone = compared.results.query("seed == 0")
    console = Console(width=170, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    once = compared.costs.assign(spread=float("nan"))
    console.print(of_comparison(alone, compared.intervals, once))
    title, table = console.export_text().split("┃", 1)
    assert "±" not in table
    assert "seeds" not in title
    console.print(of_comparison(alone, compared.intervals, compared.costs.assign(spread=0.125)))
    assert re.search(r"\d\.\d\dx ±0\.12", console.export_text())


def test_a_sample_that_a_detector_was_fitted_on_stands_in_the_table(compared):
    costs = compared.costs.assign(fit_images=50_000.0)
    rows = table_rows(compared.results, compared.intervals, costs)
    said = {row["detector"]: row["needs"] for row in rows}
    assert said["Mahalanobis"] == "fit on 50,000 images"
    assert said["MaxLogit"] == "nothing"


def test_one_score_for_all_images_is_not_best(compared):
    results = compared.results.copy()
    alike = (results["detector"] == "MaxLogit") & (results["loss"] == "softmax")
    metrics = ["AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR"]
    results.loc[alike, metrics] = [0.5, 1.0, 1.0, 0.0]
    best = [
        (row["loss"], row["detector"])
        for row in table_rows(results, compared.intervals, compared.costs)
        for name in metrics
        if row.get(f"{name} best")
    ]
    assert best
    assert ("softmax", "MaxLogit") not in best


def test_a_second_call_computes_nothing_again(compared, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr("isomax_evaluation.training.train.fit", never)
    monkeypatch.setattr("isomax_evaluation.detection.testing.results.fit", never)
    monkeypatch.setattr("isomax_evaluation.detection.testing.results.score", never)
    settings = json.loads((compared.output / "settings.json").read_text())
    from isomax_evaluation.training.recipes import Recipe

    recipe = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings["recipe"].items()
    }
    same = {key: settings[key] for key in ("losses", "detectors", "seeds")}
    again = compare(output=compared.output, recipe=Recipe(**recipe), **same)
    assert again.results.equals(compared.results)


def test_bad_input_is_refused_before_any_work(photos, tmp_path):
    output = tmp_path / "out"
    make_folder(tmp_path / "one", ("only",), 4)
    for arguments, message in [
        ({"model": "resnet81"}, "did you mean resnet18"),
        ({"losses": ["softmin"]}, "unknown loss 'softmin'"),
        ({"detectors": ["Oracle"]}, "unknown detector Oracle"),
        ({"detectors": []}, "no detectors given"),
        ({"ood": ["/no/such/folder"]}, "no dataset or folder"),
        ({"ood": ["uniform-noise", "uniform-noise"]}, "occurs twice"),
        ({"id": str(tmp_path / "one")}, "one class"),
        ({"seeds": 0}, "expected at least 1"),
        ({"image_size": 0}, "image_size is 0; expected a number in"),
        ({"images_per_class": 0}, "at most 0 images per class"),
        ({"test_images": -1}, "at most -1 test images"),
        ({"workers": -1}, "workers is -1; expected a number in"),
        ({"alpha": 1.5}, r"in \(0, 1\)"),
        ({"id": str(photos), "alpha": 0.001}, "takes 999 validation images"),
        (
            {"losses": ["softmax"], "detectors": ["EntropicScore"]},
            "no detector can work with",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            compare(output=output, **grouped(arguments))
        assert not output.exists() or not list(output.glob("runs/*/metrics.jsonl"))


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="runs in one process"):
        compare(output=tmp_path / "out")


def test_a_folder_of_another_run_is_left_alone(compared):
    before = (compared.output / "results.csv").read_bytes()
    with pytest.raises(InputError, match=r"another run \(.*alpha: 0.05 there, 0.1 given"):
        compare(output=compared.output, seeds=2, alpha=0.1, recipe=SHORT)
    assert (compared.output / "results.csv").read_bytes() == before


def test_own_folders(photos, tmp_path, capfd):
    """The user's own images, one OOD class also known, one OOD set of a single image."""

    make_folder(tmp_path / "odd", ("ash", "yew"), 6, seed=5)
    make_folder(tmp_path / "007", ("x",), 1, seed=6)
    long = "雪" * 40  # its name with % for each byte is longer than a file's may be
    make_folder(tmp_path / long, ("x",), 2, seed=7)
    done = compare(
        id=str(photos),
        ood=[str(tmp_path / "odd"), str(tmp_path / "007"), str(tmp_path / long)],
        losses=["isomax+"],
        detectors=["MinimumDistanceScore", "MaxLogit"],
        model="test_resnet",
        recipe=replace(RECIPES["digits"], epochs=2, batch_size=16),
        seeds=1,
        alpha=0.2,
        output=tmp_path / "out",
        preprocessing=Preprocessing(image_size=32),
    )
    assert set(done.results["ood"]) == {"odd", "007", long}
    assert "1 classes of the OOD set odd also occur" in capfd.readouterr().err
    # the minimum distance is minus the largest logit
    wide = done.results.pivot(index="ood", columns="detector", values="AUROC")
    assert (wide["MinimumDistanceScore"] == wide["MaxLogit"]).all()


def short(output, **arguments):
    """One model, trained for an epoch."""

    given = {"losses": ["softmax"], "seeds": 1, "recipe": replace(RECIPES["digits"], epochs=1)}
    return compare(output=output, **grouped(given | arguments))


def test_a_detector_that_fails_is_named_in_its_cells_and_the_rest_stands(tmp_path, monkeypatch):
    def refuse(self, statistics):
        raise ValueError("No correct predictions for class 3")

    def undefined(self, z):
        scores = z[:, 0].clone()
        if len(scores) == 500:  # of the noise only
            scores[:7] = torch.nan
        return scores

    def alike(self, z):
        return torch.full((len(z),), 0.25)

    monkeypatch.setattr(MahalanobisPP, "fit_statistics", refuse)
    monkeypatch.setattr(ood.LTS, "predict_features", undefined)
    monkeypatch.setattr(ood.SHE, "predict_features", alike)
    done = short(tmp_path / "out", detectors=["MaxLogit", "Mahalanobis", "LTS", "KNN", "SHE"])
    assert len(done.results) == 5 * 2
    empty = done.results[done.results["AUROC"].isna()]
    assert set(zip(empty["detector"], empty["ood"], strict=True)) == {
        ("Mahalanobis", "digits-held-out"),
        ("Mahalanobis", "uniform-noise"),
        ("LTS", "uniform-noise"),
        ("SHE", "digits-held-out"),
        ("SHE", "uniform-noise"),
    }
    assert "SHE" not in set(done.intervals["detector"])
    errors = {(row.detector, row.ood): row.error for row in done.errors.itertuples()}
    assert errors["LTS", "uniform-noise"] == "7 of 500 scores are NaN or infinite"
    count = len(pd.read_csv(tmp_path / "out/runs/softmax-seed0/scores/digits.csv"))
    same = f"all {count + 500} images get one score, 0.25"
    assert errors["SHE", "uniform-noise"] == same
    assert same in (tmp_path / "out/report.html").read_text()
    fitting = "ValueError: No correct predictions for class 3"
    assert errors["Mahalanobis", "uniform-noise"] == fitting
    assert fitting in (tmp_path / "out/report.html").read_text()
    assert not done.results.query("detector == 'KNN'").isna().any().any()


def test_a_table_without_any_value_is_a_table_of_reasons(tmp_path, monkeypatch):
    def refuse(self, z):
        raise IndexError("no neighbours")

    monkeypatch.setattr(ood.KNN, "predict_features", refuse)
    folder = tmp_path / "out"
    stale = folder / "runs/softmax-seed0/feature-maps-of-a-killed-run"
    done = short(folder, losses=["softmax", "isomax"], detectors=["KNN"])
    assert done.results["AUROC"].isna().all()
    assert len(done.errors) == 2 * 2
    assert "IndexError: no neighbours" in (folder / "report.html").read_text()
    # what a killed run has left is removed when its scoring goes on
    stale.mkdir()
    (stale.parent / "results.csv").unlink()
    short(folder, losses=["softmax", "isomax"], detectors=["KNN"])
    assert not stale.exists()


def test_the_command_ends_with_1_if_a_cell_has_no_value(isomax, tmp_path):
    done = isomax(
        *("compare", "--output", tmp_path / "out", "--images-per-class", 8, "--alpha", 0.2),
        *("--epochs", 1, "--seeds", 1, "--losses", "softmax", "--detectors", "MaxLogit,KNN"),
        "--no-track",
    )
    assert done.returncode == 1, done.stderr
    assert "no value: KNN with softmax" in done.stderr
    assert "MaxLogit" in done.stdout
    left = pd.read_csv(tmp_path / "out/left_out.csv")
    assert list(left.columns) == ["loss", "detector", "reason"]


def test_an_interrupted_scoring_goes_on_where_it_was(tmp_path, monkeypatch):
    from isomax_evaluation.detection.testing import results as testing

    names = ["MaxLogit", "ReAct", "Gram", "ODIN"]
    whole = short(tmp_path / "whole", detectors=names)
    original, scored = testing.score, []

    def stop_at_the_second(*arguments, **named):
        scored.append(1)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(testing, "score", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        short(tmp_path / "out", detectors=names)
    monkeypatch.setattr("isomax_evaluation.training.train.fit", None)  # trained, and not again
    done = short(tmp_path / "out", detectors=names)
    assert len(scored) == 4  # the ID images once, the OOD set that was interrupted twice
    pd.testing.assert_frame_equal(done.results, whole.results)
    pd.testing.assert_frame_equal(done.intervals, whole.intervals)


def test_killed_at_ten_random_moments_it_ends_with_the_same_tables(tmp_path):
    assert in_own_process(comparison, tmp_path) >= 5
    for name in ("results.csv", "intervals.csv", "errors.csv", "left_out.csv"):
        whole, killed = (tmp_path / folder / name for folder in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()


def test_a_resampled_metric_is_pytorch_oods_of_the_images_drawn():
    generator = np.random.default_rng(0)
    # more values than thresholds are looked at, and ties
    known, unknown = generator.normal(size=3000), generator.normal(1, 1, 900).round(2)
    drawn = [draw(len(values), generator, repeats=3) for values in (known, unknown)]
    found = resampled_metrics(known, unknown, *drawn)
    for repeat in range(3):
        repeated = [
            torch.from_numpy(np.repeat(values, counts[repeat]))
            for values, counts in zip((known, unknown), drawn, strict=True)
        ]
        expected = ood_metrics(*repeated)
        for name in METRICS:
            assert found[name][repeat] == pytest.approx(expected[name], abs=2e-3)


def test_intervals_hold_the_metric(compared):
    means = compared.results.groupby(["loss", "detector", "ood"])[list(METRICS)].mean()
    intervals = compared.intervals.set_index(["loss", "detector", "ood"])
    assert len(intervals) == len(means)
    for key, row in means.iterrows():
        for metric in METRICS:
            low, high = (intervals.loc[key, f"{metric} {end}"] for end in ("low", "high"))
            assert 0 <= low <= high <= 1
            assert high - low < 0.5
            assert low - 0.02 <= row[metric] <= high + 0.02


def test_costs_name_what_a_detector_needs(compared):
    assert {
        row.detector: needs(row) for row in compared.costs.query("loss == 'isomax'").itertuples()
    } == {
        "MaxSoftmax": "nothing",
        "MaxLogit": "nothing",
        "EnergyBased": "nothing",
        "EntropicScore": "nothing",
        "Mahalanobis": "fit",
        "ODIN": "gradients, 2 hyperparameters",
    }


def test_hyperparameters_are_chosen_on_other_images(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="uniform-noise is tested on"):
        short(tmp_path / "out", tune="uniform-noise")
    with pytest.raises(InputError, match="digits is tested on"):
        short(tmp_path / "out", tune="digits")
    make_folder(tmp_path / "seen", ("x",), 2)
    with pytest.raises(InputError, match="is tested on"):
        short(tmp_path / "out", ood=[str(tmp_path / "seen")], tune=f"{tmp_path}/./seen/")
    names = ["MaxLogit", "KNN", "ReAct", "GEN"]
    done = short(tmp_path / "out", tune="gaussian-noise", detectors=names, test_images=60)
    folder = tmp_path / "out/runs/softmax-seed0"
    chosen = json.loads((folder / "hyperparameters.json").read_text())
    assert set(chosen) == {"KNN", "ReAct", "GEN"}
    assert chosen["KNN"]["k"] in ood.KNN.hyperparameter_space["k"]
    assert not done.results.isna().any().any()
    report = (tmp_path / "out/report.html").read_text()
    assert "chosen by pytorch-ood's grid search on gaussian-noise" in report
    assert f"KNN: k = {chosen['KNN']['k']} (softmax 0)" in report
    # few images are scored, but accuracy is that of all
    known = data.open_splits("digits").test
    model = load_model(tmp_path / "out/runs/softmax-seed0/model")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(known.image(i)) for i in range(len(known))])
    with torch.no_grad():
        right = model(images).argmax(dim=1).numpy() == known.labels
    assert done.results["accuracy"].to_list() == pytest.approx([right.mean()] * len(done.results))
    assert len(read_scores(folder, "digits")["KNN"]) == 60
    # an interrupted run does not search again, and scores alike
    (folder / "results.csv").unlink()
    for file in folder.glob("scores/digits*"):
        file.unlink()
    monkeypatch.setattr("isomax_evaluation.detection.testing.tuning.tune", None)
    again = short(tmp_path / "out", tune="gaussian-noise", detectors=names, test_images=60)
    pd.testing.assert_frame_equal(again.results, done.results)


class Digits(Benchmark):
    """As pytorch-ood's benchmarks are: datasets of images and labels."""

    ood_names = ["held out", "noise"]  # noqa: RUF012

    def __init__(self, transform=None):
        splits = data.open_splits("digits")
        known, test = splits.train, splits.test
        self.sets = [
            [(as_wanted(images.image(i), transform), int(images.labels[i])) for i in range(count)]
            for images, count in (
                (known, 600),
                (test, 90),
                (data.open_images("digits-held-out").as_ood(), 80),
                (data.open_images("uniform-noise"), 70),
            )
        ]

    def train_set(self):
        return self.sets[0]

    def test_sets(self, known=True, unknown=True):
        if not unknown:
            return [self.sets[1]]
        return self.sets[2:] if not known else [self.sets[1] + other for other in self.sets[2:]]


def as_wanted(image, transform):
    return image if transform is None else transform(image)


def test_a_benchmark_of_pytorch_ood_brings_its_own_sets(tmp_path):
    done = short(
        tmp_path / "out", benchmark=Digits(), detectors=["MaxLogit"], image_size=32, alpha=0.1,
        ood=[],  # as the command line gives it
    )  # fmt: skip
    assert list(done.results["ood"]) == ["held out", "noise"]
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["id"] == "Digits"
    assert settings["images"] == {
        "Digits": 600,
        "held out": 80,
        "noise": 70,
        "id test": 90,
        "id scored": 90,
    }
    # the same numbers as its own evaluation of the same model
    model = load_model(tmp_path / "out/runs/softmax-seed0/model")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    expected = Digits(transform).evaluate([ood.MaxLogit(model)])
    for row, theirs in zip(done.results.itertuples(), expected, strict=True):
        assert pytest.approx(theirs["AUROC"], abs=1e-6) == row.AUROC


def test_benchmarks_that_cannot_be_used_are_refused(tmp_path):
    for benchmark, message in [
        ("CIFAR11", "choose from CIFAR10_ODIN"),
        (Digits(np.asarray), "gives ndarray, not images"),
    ]:
        with pytest.raises(InputError, match=message):
            short(tmp_path / "out", benchmark=benchmark)


def test_scores_that_are_nearly_alike_are_plotted(tmp_path):
    # 20 numbers of float32, fewer than a histogram has bars
    near = np.float32(-2.3) - np.arange(20, dtype=np.float32) * np.spacing(np.float32(2.3))
    scores = {"r18, KNN": {ID: near, "street": near}}
    results = pd.DataFrame(
        [{"loss": "r18", "seed": 0, "detector": "KNN", "ood": "street", "AUROC": 0.5}]
    )
    write_plots(tmp_path, results, scores)
    assert (tmp_path / "plots/scores.png").is_file()
