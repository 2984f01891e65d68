"""Scoring without torch. These tests also run where only numpy, ONNX Runtime and Pillow are."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from isomax_adapters.runtime import scorer as runtime
from isomax_adapters.runtime import sessions
from isomax_adapters.runtime.decoding import IMAGE_FORMATS
from isomax_adapters.runtime.metadata import resized
from isomax_adapters.runtime.resizing import to_size_of_graph
from isomax_adapters.runtime.room import Room
from isomax_adapters.runtime.scorer import ModelError, Result, Scorer
from isomax_evaluation.data.listing.files import IMAGE_SUFFIXES, find_images

from .encoded import tiff

MEAN, STD = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])


@pytest.fixture(scope="module")
def scorer(model_path):
    return Scorer(model_path)


def colour(red, green, blue, size=(8, 8)):
    return np.full((*size, 3), (red, green, blue), dtype=np.uint8)


def shades(count):
    """Colours from pure ones to grey: scores from the smallest to the largest."""
    generator = np.random.default_rng(0)
    pure = 255 * np.eye(3)[generator.integers(0, 3, count)]
    share = generator.random((count, 1))
    return (share * pure + (1 - share) * generator.integers(90, 160, (count, 3))).astype(int)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind)
    return buffer.getvalue()


def by_hand(image):
    """The outputs from the definition of the tiny model, in float64."""
    features = (image.reshape(-1, 3).mean(axis=0) / 255 - MEAN) / STD
    prototypes = (np.eye(3) - MEAN) / STD
    logits = -np.linalg.norm(features - prototypes, axis=1)
    p = np.exp(logits) / np.exp(logits).sum()
    tempered = np.exp(logits / 0.25) / np.exp(logits / 0.25).sum()
    return logits.argmax(), tempered.max(), -(p * np.log(p)).sum()


def test_label_confidence_score_and_verdict_are_the_formulas(scorer):
    images = [colour(250, 10, 5), colour(128, 120, 110), np.random.default_rng(0).integers(
        0, 256, (8, 8, 3), dtype=np.uint8)]  # fmt: skip
    for image, result in zip(images, scorer.score(images), strict=True):
        label, confidence, score = by_hand(image)
        assert result.label == label
        assert result.confidence == pytest.approx(confidence, abs=1e-5)
        assert result.score == pytest.approx(score, abs=1e-5)
        assert result.is_ood == (score > 0.9)
    assert scorer.score(images)[0].class_name == "red"
    assert not scorer.score(images)[0].is_ood
    assert scorer.score(images)[1].is_ood


def test_paths_bytes_and_arrays_give_the_same(scorer, tmp_path):
    image = colour(10, 200, 40, size=(30, 20))
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    results = scorer.score([path, str(path), encoded(image), image])
    assert len({(r.label, r.confidence, r.score) for r in results}) == 1
    assert scorer.score(path) == scorer.score([path])
    for alone in (bytes, bytearray, memoryview):
        assert scorer.score(alone(encoded(image))) == scorer.score([encoded(image)])
    assert scorer.score(image)[0].score == results[0].score


def test_images_of_many_sizes_come_back_in_order(scorer):
    generator = np.random.default_rng(0)
    shades = generator.integers(0, 256, (60, 3))
    images = [colour(*shade, size=(8 + i % 5, 8 + i % 3)) for i, shade in enumerate(shades)]
    together = scorer.score(images, batch_size=7)
    alone = [scorer.score(image)[0] for image in images]
    assert [r.label for r in together] == [r.label for r in alone]
    np.testing.assert_allclose([r.score for r in together], [r.score for r in alone], rtol=1e-5)


def test_run_gives_all_outputs(scorer):
    outputs = scorer.run(np.stack([colour(1, 2, 3)] * 2))
    shapes = {name: value.shape for name, value in outputs.items()}
    assert shapes == {
        "label": (2,),
        "confidence": (2,),
        "score": (2,),
        "is_ood": (2,),
        "logits": (2, 3),
        "probabilities": (2, 3),
        "p_value": (2,),
    }
    assert outputs["label"].dtype == np.int64
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, rtol=1e-6)


def test_the_most_probable_classes_come_with_their_probabilities(scorer):
    images = [colour(250, 90, 5), colour(10, 90, 200)]
    outputs = scorer.run(np.stack(images))
    for row, result in enumerate(scorer.score(images, top=2)):
        order = np.argsort(-outputs["logits"][row])[:2]
        names = [scorer.class_names[at] for at in order]
        assert result.top == tuple(
            zip(names, map(float, outputs["probabilities"][row][order]), strict=True)
        )
        assert result.top[0] == (result.class_name, result.confidence)
        assert result.top[0][1] > result.top[1][1]
    assert [len(result.top) for result in scorer.score([*images, b""], top=9)] == [3, 3, 0]
    assert scorer.score(images[0])[0].top == ()
    sure = scorer.score(colour(255, 0, 0), top=3)[0]
    assert sum(probability for _, probability in sure.top) == pytest.approx(1)
    with pytest.raises(ValueError, match="top is -1"):
        scorer.score(images, top=-1)


def test_providers_are_those_of_onnx_runtime(model_path):
    image = colour(9, 99, 9)
    expected = Scorer(model_path).score(image)
    for providers in ("CPUExecutionProvider", [("CPUExecutionProvider", {})]):
        assert Scorer(model_path, providers=providers).score(image) == expected
    with pytest.raises(ValueError, match=r"has no 'MoonExecutionProvider'; it has .*CPU"):
        Scorer(model_path, providers=["MoonExecutionProvider"])


def test_another_alpha_has_another_threshold(model_path):
    for alpha, threshold in ((None, 0.9), (0.01, 1.05), (0.3, 0.675), (0.3099, 0.675)):
        assert Scorer(model_path, alpha=alpha).threshold == np.float32(threshold)  # 0.3: of 99 30
    with pytest.raises(ValueError, match="more held-out samples than the 99"):
        Scorer(model_path, alpha=0.009)
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        Scorer(model_path, alpha=2)
    image = colour(128, 120, 110)
    score = by_hand(image)[2]
    assert score > 0.9
    assert Scorer(model_path, alpha=0.01).score(image)[0].is_ood == (score > 1.05)


def test_every_rate_rejects_what_has_a_p_value_of_at_most_that(scorer):
    """Where alpha is a p-value too: as what the file gave, as a quotient, and beside these."""
    images = np.stack([colour(*shade) for shade in shades(200)])
    outputs = scorer.run(images)
    p_values = outputs["p_value"].astype(float)
    assert len(set(p_values)) > 20
    for rank in range(1, 100):
        single = float(scorer.steps.values[rank - 1])
        for alpha, expected in (
            (rank / 100, rank),
            (single, rank),
            (scorer.steps.values[rank - 1], rank),
            (np.nextafter(single, 1), rank),
            (np.nextafter(single, 0), rank - 1),
        ):
            if not expected:
                with pytest.raises(ValueError, match=r"the least is 0\.01"):
                    scorer.at(alpha)
                continue
            at = scorer.at(alpha)
            rejected = at.run(images)["is_ood"]
            assert np.array_equal(rejected, p_values <= alpha)
            assert np.array_equal(rejected, outputs["score"] > np.float32(at.threshold))
            assert rejected.sum() == (np.round(100 * p_values) <= expected).sum()


def test_p_values_are_the_share_of_calibration_scores_as_large(scorer):
    calibration = np.array(scorer.metadata["scores"], np.float32)
    images = np.stack([colour(*shade) for shade in shades(200)])
    outputs = scorer.run(images)
    ranks = 1 + (calibration >= outputs["score"][:, None]).sum(axis=1)
    np.testing.assert_allclose(outputs["p_value"], ranks / 100, rtol=1e-6)
    assert (outputs["p_value"] <= ranks / 100).all()
    assert len(set(ranks)) > 20
    for alpha in (0.01, 0.05, 0.2, 0.5):
        rejected = scorer.at(alpha).run(images)["is_ood"]
        assert 0 < rejected.sum() < 200
        assert np.array_equal(rejected, outputs["p_value"].astype(float) <= alpha)
    rows = scorer.score(images[:9])
    assert [row.p_value for row in rows] == outputs["p_value"][:9].tolist()


# -- Hostile input -----------------------------------------------------------------------------


def test_what_does_not_decode_is_reported_and_the_others_are_scored(scorer, tmp_path):
    good = encoded(colour(200, 10, 10, size=(40, 40)), "JPEG")
    inputs = [good, good[: len(good) // 2], b"", b"not an image", tmp_path / "missing.jpg", good]
    results = scorer.score(inputs)
    assert [bool(r.error) for r in results] == [False, True, True, True, True, False]
    assert all(r.is_ood and np.isnan(r.score) for r in results if r.error)
    assert "No such file" in results[4].error


def test_sixteen_bits_are_scaled_and_unknown_ranges_refused(scorer):
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    eight, sixteen = Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)
    assert sixteen.mode == "I;16"
    expected = scorer.score(encoded(eight))[0].score
    assert scorer.score(encoded(sixteen))[0].score == expected
    assert scorer.score(encoded(sixteen, "TIFF"))[0].score == expected
    for unknown in (grey.astype(np.int32), grey.astype(np.float32) / 255):
        assert "no known range" in scorer.score(encoded(Image.fromarray(unknown), "TIFF"))[0].error


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_is_scored_as_rgb(scorer, mode):
    image = Image.fromarray(colour(180, 60, 30, size=(16, 16))).convert(mode)
    data = encoded(image, "TIFF")
    with Image.open(io.BytesIO(data)) as opened:
        expected = scorer.score(np.asarray(opened.convert("RGB")))[0].score
    assert scorer.score(data)[0].score == expected


def test_a_jpeg_of_adobes_inverted_cmyk_is_scored_as_rgb(scorer):
    cmyk = Image.fromarray(colour(180, 60, 30, size=(16, 16))).convert("CMYK")
    data = encoded(cmyk, "JPEG")
    assert b"Adobe" in data
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "CMYK"
        expected = scorer.score(np.asarray(opened.convert("RGB")))[0]
    result = scorer.score(data)[0]
    assert (result.score, result.class_name) == (expected.score, "red")


def test_sixteen_bits_per_colour_keep_their_upper_eight(scorer):
    grey = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert scorer.score(_png16(grey))[0].score == scorer.score(grey)[0].score


def _png16(image):
    """A PNG of 16 bits per colour, which Pillow reads and does not write."""
    height, width, _ = image.shape
    rows = (b"\0" + (row.astype(">u2") * 257).tobytes() for row in image)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(rows)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )


def test_grey_values_are_read_in_the_range_of_the_model(scorer, model_path, tmp_path):
    """The very pixels of the same picture in 8 bits."""
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)  # as the model has it
    twelve = grey.astype(np.uint16) << 4 | grey >> 4
    stored = [encoded(Image.fromarray(twelve), kind) for kind in ("PNG", "TIFF")]
    expected = scorer.score(encoded(Image.fromarray(grey)))[0].score
    assert not np.isclose([row.score for row in scorer.score(stored)], expected).any()
    ranged = _with_preprocessing(model_path, tmp_path, grey_range=[0, 4095])
    seen, run = [], ranged.run
    ranged.run = lambda images: seen.append(images) or run(images)
    assert [row.score for row in ranged.score(stored)] == [expected] * 2
    assert (seen[0] == grey[..., None]).all()
    # and those of a depth without one
    signed = Image.fromarray(twelve.astype(np.int32) - 1000)
    ranged = _with_preprocessing(model_path, tmp_path, grey_range=[-1000, 3095])
    assert ranged.score(encoded(signed, "TIFF"))[0].score == expected


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_one_object_several_times_is_the_same_each_time(model_path, kind, tmp_path):
    """A PIL image decodes when it is first asked for its pixels; a file is read to its end."""
    noise = np.random.default_rng(0).integers(0, 256, (180, 150, 3), dtype=np.uint8)
    path = tmp_path / "image"
    path.write_bytes(encoded(noise, kind))
    scorer = Scorer(model_path, threads=4)
    expected = scorer.score(path)[0].score
    for _ in range(3):
        with Image.open(path) as image, path.open("rb") as file:
            read = io.BytesIO(path.read_bytes())
            read.read()
            for given in (image, file, read):
                rows = scorer.score([given] * 24, batch_size=24)
                assert {row.score for row in rows} == {expected}, rows[0].error


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_half_an_image_several_times_is_an_error_each_time(scorer, kind):
    noise = np.random.default_rng(0).integers(0, 256, (180, 150, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encoded(noise, kind)[:4000])) as image:
        assert all(row.error for row in scorer.score([image] * 8))


def test_a_stream_is_read_once(scorer):
    start, end = os.pipe()
    with open(start, "rb") as stream:
        with open(end, "wb") as file:
            file.write(encoded(colour(1, 2, 3)))
        first, second = scorer.score([stream, stream])
    assert sorted([bool(first.error), bool(second.error)]) == [False, True]


def test_photographs_are_turned_for_a_model_that_was_trained_so(model_path, tmp_path):
    stored = colour(200, 30, 60, (8, 12))
    stored[:4, :4] = 0
    photograph, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    Image.fromarray(stored).save(photograph, "PNG", exif=exif)
    made = []
    for options, seen in (({}, stored), ({"orientation": "upright"}, np.rot90(stored, -1))):
        model = _with_preprocessing(model_path, tmp_path, **options)
        run = model.run
        model.run = lambda images, run=run: made.append(images[0]) or run(images)
        assert [model.score(given)[0].error for given in (photograph, seen)] == ["", ""]
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[2], made[3])
    assert not np.array_equal(made[0], made[2])
    with pytest.raises(ModelError, match="orientation 'aslant'; expected stored or upright"):
        _with_preprocessing(model_path, tmp_path, orientation="aslant")


@pytest.mark.parametrize("channels", [1, 4])
def test_models_of_other_channels(channels, tmp_path):
    """Files, and arrays of their pixels, are the same."""
    onnx = pytest.importorskip("onnx")
    from ..onnx.make_model import build

    onnx.save(build(channels=channels), tmp_path / "m.onnx")
    scorer = Scorer(tmp_path / "m.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, channels), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))
    from_file, from_array = scorer.score([data, pixels])
    assert not from_file.error
    assert from_file.score == from_array.score
    assert scorer.run(pixels[None])["logits"].shape == (1, 3)
    other = np.zeros((9, 9, channels), np.float32)
    assert f"not uint8 [H, W, {channels}]" in scorer.score(other)[0].error
    rgb = colour(200, 30, 60, size=(9, 9))  # as from a file
    assert scorer.score([rgb])[0].score == scorer.score([encoded(rgb)])[0].score
    with pytest.raises(ValueError, match=rf"expected uint8 \[N, H, W, {channels}\]"):
        scorer.run(other[None])


def test_transparency_is_scored_over_white(scorer):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    colours, alpha = pixels[..., :3].astype(int), pixels[..., 3:].astype(int)
    over_white = (colours * alpha + 255 * (255 - alpha) + 127) // 255
    found = scorer.score(encoded(Image.fromarray(pixels)))[0].score
    assert found == scorer.score(over_white.astype(np.uint8))[0].score


def test_what_would_be_read_as_something_else_is_a_row_that_names_the_tag(scorer, tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(bytes(9), (3, 2), (12,), order=">"))
    rows = scorer.score([tmp_path / "a.tif", tiff(bytes(24), (3, 2), (8,) * 4, 2, extra=0)])
    assert "BitsPerSample 12" in rows[0].error
    assert "ExtraSamples 0" in rows[1].error


def test_exif_orientation_is_not_applied(scorer):
    image = Image.fromarray(np.concatenate([colour(250, 0, 0), colour(0, 250, 0)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert scorer.score(buffer.getvalue())[0].score == scorer.score(np.asarray(image))[0].score


def test_one_pixel_is_enough_and_too_many_are_refused(model_path, scorer):
    assert not scorer.score(colour(9, 9, 9, size=(1, 1)))[0].error
    huge = encoded(Image.new("1", (20_000, 20_000)))
    assert "pixels" in scorer.score(huge)[0].error
    small = Scorer(model_path, max_pixels=10)
    assert "more than 10" in small.score(encoded(colour(1, 1, 1)))[0].error


def test_animations_are_scored_by_their_first_frame(scorer):
    frames = [Image.fromarray(colour(*c)) for c in ((250, 0, 0), (0, 0, 250))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert scorer.score(buffer.getvalue())[0].class_name == "red"


def test_what_is_no_file_and_no_image_is_reported_not_waited_for(scorer, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    good = encoded(colour(200, 0, 0))
    inputs = [tmp_path / "pipe.jpg", tmp_path / "folder.jpg", None, 3, bytearray(good), "x" * 5000]
    results = scorer.score([*inputs, good])
    assert [bool(r.error) for r in results] == [True, True, True, True, False, True, False]
    assert "not a regular file" in results[0].error
    with pytest.raises(ValueError, match="batch_size is 0"):
        scorer.score([good], batch_size=0)


def test_pixels_at_once_are_bounded_whatever_comes_next(model_path, monkeypatch):
    """As many pixels are decoded as the budget allows, not one more; images of all sizes share
    batches."""
    budget = 20_000
    monkeypatch.setattr(runtime, "PIXELS_AT_ONCE", budget)
    scorer = Scorer(model_path, threads=3)
    held, batches, run, enter = [], [], scorer.run, Room.enter

    def entered(room, number, pixels):
        enter(room, number, pixels)
        held.append(sum(list(room._held.values())))

    monkeypatch.setattr(Room, "enter", entered)
    monkeypatch.setattr(scorer, "run", lambda images: batches.append(images.shape) or run(images))
    sides = ([10] * 3 + [100]) * 12
    images = {side: encoded(colour(9, 9, 9, size=(side, side))) for side in set(sides)}
    results = list(scorer.stream(images[side] for side in sides))
    assert len(results) == 48
    assert not any(result.error for result in results)
    assert max(held) <= budget
    assert batches == [(16, 8, 8, 3)] * 3


def test_an_image_larger_than_the_budget_is_decoded_alone(model_path, monkeypatch):
    monkeypatch.setattr(runtime, "PIXELS_AT_ONCE", 1_000)
    scorer = Scorer(model_path, threads=3)
    taken = []
    original = Room.enter

    def enter(room, number, pixels):
        original(room, number, pixels)
        taken.append([n for n in list(room._held.values()) if n])

    monkeypatch.setattr(Room, "enter", enter)
    small, large = (encoded(colour(9, 9, 9, size=(side, side))) for side in (10, 40))
    results = scorer.score([small, large, b"", large, small, b"", small])
    assert [bool(result.error) for result in results] == [0, 0, 1, 0, 0, 1, 0]
    assert [1600] in taken
    assert not [held for held in taken if 1600 in held and len(held) > 1]


def test_large_arrays_are_not_taken_all_at_once(scorer, monkeypatch):
    monkeypatch.setattr(runtime, "PIXELS_AT_ONCE", 2_000)
    taken = 0

    def inputs():
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield colour(9, 9, 9, size=(30, 30))

    for given, _ in enumerate(scorer.stream(inputs())):
        assert taken <= given + 1 + 6


def test_giving_up_half_way_waits_for_nobody(model_path, monkeypatch):
    """Images that wait for room do not keep a stream open that is closed."""
    monkeypatch.setattr(runtime, "PIXELS_AT_ONCE", 100)
    rows = Scorer(model_path, threads=4).stream([encoded(colour(9, 9, 9, size=(30, 30)))] * 40)
    next(rows)
    rows.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_inputs_that_fail_half_way_leave_the_rows_before(scorer):
    def inputs():
        for _ in range(20):
            yield colour(9, 9, 9)
        raise OSError("the listing broke off")

    rows = []
    with pytest.raises(OSError, match="broke off"):
        rows.extend(scorer.stream(inputs()))
    assert len(rows) == 20


def test_thin_images_are_refused_before_the_model_makes_them_huge(model_path, tmp_path):
    thin, good = encoded(Image.new("RGB", (1, 65_000)), "JPEG"), encoded(colour(250, 0, 0))
    scorer = _with_preprocessing(model_path, tmp_path, input_size=[3, 224, 224])
    rows = list(scorer.stream([good] * 17 + [thin] + [good] * 3))
    assert [number for number, row in enumerate(rows) if row.error] == [17]
    assert rows[17].error == "1x65000 is too thin: the model would make it 224x14560000"
    with pytest.raises(ValueError, match="too thin"):
        scorer.run(np.zeros((1, 65_000, 1, 3), np.uint8))
    border = _with_preprocessing(model_path, tmp_path, crop_mode="border")
    assert "would make it 8x0" in border.score(colour(9, 9, 9, size=(1, 1000)))[0].error


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_the_size_after_the_resize_is_the_graphs(crop_mode, size):
    onnx = pytest.importorskip("onnx")
    from isomax_adapters.onnx.graph import preprocessing

    config = {
        "input_size": (3, *size),
        "interpolation": "bilinear",
        "crop_mode": crop_mode,
        "crop_pct": 0.875,
        "mean": MEAN,
        "std": STD,
    }
    model = preprocessing(config, 18, 10)
    model.graph.output.append(onnx.helper.make_tensor_value_info("resized_size", 7, [2]))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for height, width in np.random.default_rng(0).integers(20, 400, (40, 2)):
        images = np.zeros((1, height, width, 3), np.uint8)
        (expected,) = session.run(["resized_size"], {"images": images})
        assert resized(config, int(height), int(width)) == tuple(expected)


def test_what_the_network_fails_on_is_a_row_and_the_others_are_scored(scorer, monkeypatch):
    original = scorer.session

    class Failing:
        def run(self, names, feeds):
            if (feeds["images"][:, 0, 0, 0] == 13).any():
                raise MemoryError("too large\nsecond line")
            return original.run(names, feeds)

        get_outputs = original.get_outputs

    monkeypatch.setattr(scorer, "session", Failing())
    rows = scorer.score([colour(red, 0, 0) for red in (250, 251, 13, 252)])
    assert [row.error for row in rows] == ["", "", "MemoryError: too large", ""]
    assert [row.class_name for row in rows] == ["red", "red", "", "red"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", np.zeros((1, 1), np.int64), r"gave 'label' of shape \(1, 1\) for 1 images"),
        ("score", np.zeros(0, np.float32), r"gave 'score' of shape \(0,\) for 1 images"),
        ("label", np.array([7]), "gave label 7, which has no class name"),
    ],
)
def test_a_graph_that_breaks_its_promises_is_named(scorer, monkeypatch, name, value, message):
    original = scorer.run
    monkeypatch.setattr(scorer, "run", lambda images: original(images) | {name: value})
    with pytest.raises(ModelError, match=message):
        scorer.score(colour(9, 9, 9))


def test_only_formats_with_a_suffix_of_ours_are_opened(scorer, tmp_path, monkeypatch):
    """Pillow gives EPS files, whatever their names, to Ghostscript."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    eps = tmp_path / "evil.jpg"
    eps.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    assert "cannot identify" in scorer.score(eps)[0].error
    assert not started
    with Image.open(eps) as image:  # the file is what it claims to be
        assert image.format == "EPS"
    assert "cannot identify" in scorer.score(encoded(Image.new("RGB", (9, 9)), "ICO"))[0].error
    for kind in IMAGE_FORMATS:
        assert not scorer.score(encoded(colour(250, 0, 0), kind))[0].error
    assert not scorer.score(encoded(colour(250, 0, 0), "MPO"))[0].error
    suffixes = Image.registered_extensions()
    assert {suffixes[suffix] for suffix in IMAGE_SUFFIXES} == set(IMAGE_FORMATS)


def _with_metadata(change):
    def damage(model_path, path):
        onnx = pytest.importorskip("onnx")
        model = onnx.load(model_path)
        metadata = json.loads(model.metadata_props[0].value)
        change(metadata)
        model.metadata_props[0].value = json.dumps(metadata)
        onnx.save(model, path)

    return damage


def _with_preprocessing(model_path, folder, **changed):
    """The model, as if its preprocessing was another."""
    path = folder / "changed.onnx"
    _with_metadata(lambda m: m["preprocessing"].update(changed))(model_path, path)
    return Scorer(path)


def _preprocessing(**changed):
    return _with_metadata(lambda m: m["preprocessing"].update(changed))


def _logits_of_one_dimension(model_path, path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(model_path)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = "wide" if name == "logits" else name
    axis = onnx.helper.make_node("Constant", [], ["first_axis"], value_ints=[1])
    largest = onnx.helper.make_node("ReduceMax", ["wide", "first_axis"], ["logits"], keepdims=0)
    model.graph.node.extend([axis, largest])
    del model.graph.output[4].type.tensor_type.shape.dim[1:]
    onnx.save(model, path)


def _rename_output(model_path, path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(model_path)
    model.graph.output[2].name = "points"
    next(n for n in model.graph.node if n.output[0] == "score").output[0] = "points"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "points" if name == "score" else name
    onnx.save(model, path)


def _external_data(location, place="initializer"):
    def damage(model_path, path):
        onnx = pytest.importorskip("onnx")
        helper = onnx.helper
        model = onnx.load(model_path)
        secret = path.parent.parent / "secret.bin"
        secret.write_bytes(np.zeros(9, np.float32).tobytes())
        tensor = onnx.TensorProto(name="stolen", data_type=1, dims=[9])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location.format(outside=secret)
        if place == "constant":
            model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
        elif place == "default of a function":
            constant = helper.make_node("Constant", [], ["y"])
            constant.attribute.add(name="value", ref_attr_name="v", type=4)
            function = helper.make_function(
                *("other", "F", [], ["y"], [constant], [helper.make_opsetid("", 18)]),
                attribute_protos=[helper.make_attribute("v", tensor)],
            )
            model.functions.append(function)
            model.opset_import.append(helper.make_opsetid("other", 1))
            model.graph.node.append(helper.make_node("F", [], ["c"], domain="other"))
        else:
            model.graph.initializer.append(tensor)
            model.graph.node.append(helper.make_node("Identity", ["stolen"], ["copied"]))
        path.write_bytes(model.SerializeToString())

    return damage


def _under_a_tag_of(number):
    """External data in a graph whose field number is written as another one."""

    def damage(model_path, path):
        onnx = pytest.importorskip("onnx")
        _external_data("../secret.bin")(model_path, path)
        model = onnx.load(path, load_external_data=False)
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        path.write_bytes(
            model.SerializeToString() + _varint(number << 3 | 2) + _varint(len(graph)) + graph
        )

    return damage


def _varint(value):
    encoded = b""
    while value > 127:
        encoded, value = encoded + bytes([value & 127 | 128]), value >> 7
    return encoded + bytes([value])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_external_data("{outside}"), "refers to data in other files"),
        (_external_data("../secret.bin"), "refers to data in other files"),
        (_external_data("secret.bin", "constant"), "refers to data in other files"),
        (_external_data("secret.bin", "default of a function"), "refers to data in other files"),
        (_under_a_tag_of(7), "refers to data in other files"),
        (_under_a_tag_of(7 | 1 << 29), "a field number is too large"),  # 32 bits of it are 7
        (_under_a_tag_of(7 | 1 << 40), "a field number is too large"),
        (_logits_of_one_dimension, "was not exported by isomax"),
        (_rename_output, "was not exported by isomax"),
        (_with_metadata(lambda m: m.update(format=99)), "format 99"),
        (_with_metadata(lambda m: m.update(class_names="abc")), "list of strings"),
        (_with_metadata(lambda m: m.update(class_names=["a", "b"])), "2 class names for 3"),
        (_with_metadata(lambda m: m.update(threshold=float("nan"))), "finite"),
        (_with_metadata(lambda m: m.update(threshold="high")), "finite"),
        (_with_metadata(lambda m: m.update(alpha=0.009)), "alpha is 0.009 with 99 scores"),
        (_with_metadata(lambda m: m.update(alpha=1.5)), "alpha is 1.5"),
        (_with_metadata(lambda m: m.update(tolerance=-1e-9)), "tolerance is -1e-09"),
        (_with_metadata(lambda m: m.pop("tolerance")), "tolerance"),
        (_with_metadata(lambda m: m.update(samples=0)), "samples is 0, not a count"),
        (_with_metadata(lambda m: m.update(samples=98)), "scores is not a list of 98 numbers"),
        (_with_metadata(lambda m: m.pop("scores")), "scores"),
        (_with_metadata(lambda m: m["scores"].__setitem__(0, "low")), "damaged"),
        (_with_metadata(lambda m: m["scores"].__setitem__(0, float("-inf"))), "finite"),
        (_with_metadata(lambda m: m["scores"].reverse()), "not in order"),
        (_with_metadata(lambda m: m.pop("preprocessing")), "preprocessing"),
        (_with_metadata(lambda m: m.update(preprocessing=[1])), "damaged"),
        (_preprocessing(crop_mode="spiral"), "crop_mode is 'spiral'"),
        (_preprocessing(input_size=[3, 8]), "not .1, 3 or 4, height, width."),
        (_preprocessing(input_size=[3, 8, 10**400]), "damaged"),
        (_preprocessing(input_size=[1, 8, 8]), "not that of 3 channels"),
        (_preprocessing(grey_range=[4095, 0]), "grey range"),
        (_preprocessing(crop_pct=0), "damaged"),
        (_preprocessing(crop_pct=1e-9), "no size to resize to"),
        (_preprocessing(crop_pct=float("nan")), "damaged"),
    ],
)
def test_a_strangers_model_is_refused(model_path, tmp_path, damage, message):
    path = tmp_path / "inside" / "m.onnx"
    path.parent.mkdir()
    damage(model_path, path)
    with pytest.raises(ModelError, match=message):
        Scorer(path)


def test_mutated_jpegs_neither_crash_nor_go_missing(scorer):
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((48, 48))
    original = np.frombuffer(encoded(image, "JPEG"), dtype=np.uint8)
    mutated = []
    for _ in range(1000):
        data = original.copy()
        places = generator.integers(0, len(data), generator.integers(1, 12))
        data[places] = generator.integers(0, 256, len(places))
        mutated.append(data.tobytes()[: generator.integers(len(data) // 2, len(data) + 1)])
    results = scorer.score(mutated)
    assert len(results) == 1000
    assert all(result.error or np.isfinite(result.score) for result in results)
    assert any(result.error for result in results)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(8, np.uint8),
        np.array(7, np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8, 8), bool),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_reported(scorer, array):
    assert scorer.score([array])[0].error
    with pytest.raises(ValueError, match="expected"):
        scorer.run(array[None])


def test_what_people_have_is_one_row_each(scorer, tmp_path):
    image = Image.fromarray(colour(200, 30, 60, size=(12, 9)))
    path = tmp_path / "red.png"
    image.save(path)
    expected = scorer.score([path])[0]
    array = np.asarray(image)
    with path.open("rb") as file:
        given = [image, file, path.read_bytes(), memoryview(path.read_bytes()), array]
        for one in (given[0], given[1]):
            (row,) = scorer.score(one)  # not taken apart into its rows or lines
            assert not row.error
        file.seek(0)
        rows = scorer.score(given)
    assert [row.score for row in rows] == [expected.score] * 5
    assert rows[1].source == str(path)
    grey, transparent = array[..., 0], np.dstack([array, np.full(array.shape[:2], 128, np.uint8)])
    for one, like in ((grey, image.getchannel("R")), (transparent, Image.fromarray(transparent))):
        (row,) = scorer.score(one)
        assert row.score == scorer.score(encoded(like))[0].score
    assert np.asarray(scorer.score(np.stack([array] * 3))).shape == (3,)


class UploadFile:
    """As FastAPI has it."""

    async def read(self, size=-1):
        return b""


def test_a_file_with_nothing_to_read_says_why(scorer, tmp_path):
    (tmp_path / "read.bin").write_bytes(b"something")
    with (tmp_path / "read.bin").open("rb") as file:
        file.read()
        rows = scorer.score([file, io.BytesIO(), UploadFile(), b""])
    nothing = "nothing left to read: an empty file, or one to seek(0) first"
    read = "UploadFile is read with await; give its .file"
    assert [row.error for row in rows[1:]] == [nothing, read, "no bytes at all"]
    assert "cannot identify" in rows[0].error  # from its beginning, wherever it was read to


def test_what_is_no_image_is_one_clear_line(scorer, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("no image\n" * 9)
    odd = memoryview(np.zeros((4, 4), np.uint8)[:, ::2])
    with text.open() as file:
        rows = scorer.score([file, odd, object(), None, 7, io.StringIO("a")])
    assert len(rows) == 6
    assert "open it in binary mode" in rows[0].error
    for row in rows:
        assert row.error
        assert "\n" not in row.error
        assert len(row.error) < 400
    assert "object is no path, bytes, binary file, PIL image or uint8 array" in rows[2].error
    for wrong, message in (
        ({"a.jpg": 1}, "inputs is a dict; give its images"),
        (7, "inputs is int; expected images"),
    ):
        with pytest.raises(TypeError, match=message):
            scorer.score(wrong)
    with pytest.raises(TypeError, match="inputs is one str; give a list"):
        next(scorer.stream("a.jpg"))


def test_a_limit_above_pillows_own_holds(model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    image = encoded(colour(9, 9, 9, size=(10, 10)))
    assert "more than 99 allowed" in Scorer(model_path, max_pixels=99).score(image)[0].error
    assert not Scorer(model_path, max_pixels=100).score(image)[0].error
    assert Image.MAX_IMAGE_PIXELS == 40


def test_a_scorer_can_be_sent_to_a_worker(model_path, tmp_path):
    shutil.copy(model_path, tmp_path / "m.onnx")
    scorer = Scorer(tmp_path / "m.onnx", alpha=0.1, threads=1)
    image = encoded(colour(200, 30, 60))
    sent = pickle.dumps(scorer)
    assert len(sent) < 20_000
    other = pickle.loads(sent)
    assert other.score(image) == scorer.score(image)
    assert (other.alpha, other.threads) == (0.1, 1)
    (tmp_path / "m.onnx").write_bytes(b"another")
    with pytest.raises(ModelError):
        pickle.loads(sent)


class Elsewhere:
    """A session that does not run where it was asked to."""

    def __init__(self, *given, **options):
        self.options = options

    def get_providers(self):
        return ["CPUExecutionProvider"]


def test_a_provider_that_does_not_work_is_refused(model_path, monkeypatch):
    ort = sessions.onnxruntime
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(ort, "InferenceSession", Elsewhere)
    with pytest.raises(ValueError, match=r"CUDAExecutionProvider cannot be used here.*run on CPU"):
        Scorer(model_path, providers=both)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 3),
        ({"cpu.max": "max 100000"}, 3),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": "nonsense"}, 3),
    ],
)
def test_threads_are_those_that_the_process_may_use(files, cores, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sessions, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    assert sessions.cores() == cores


def test_standard_output_is_ours_alone(model_path, tmp_path, capfd):
    content = bytearray(Path(model_path).read_bytes())
    place = content.index(b"ReduceMean")
    content[place : place + 10] = b"ReduceMxyz"
    (tmp_path / "damaged.onnx").write_bytes(content)
    with pytest.raises(ModelError):
        Scorer(tmp_path / "damaged.onnx")
    with pytest.raises(ValueError, match="threads is 0"):
        Scorer(model_path, threads=0)
    said = capfd.readouterr()
    assert not said.out
    assert not said.err


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop_pct"), [((8, 8), 0.9), ((8, 8), 1.0), ((9, 12), 0.75)])
def test_images_of_all_sizes_share_a_batch_and_are_what_the_graph_makes_of_them(
    crop_mode, interpolation, size, crop_pct
):
    """But for one grey level here and there: Pillow rounds otherwise than ONNX Runtime."""
    pytest.importorskip("onnx")
    from isomax_adapters.onnx.graph import preprocessing

    config = {
        "input_size": (3, *size), "interpolation": interpolation, "crop_pct": crop_pct,
        "crop_mode": crop_mode, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0),
    }  # fmt: skip
    graph = preprocessing(config, opset=18, ir_version=9).SerializeToString()
    session = sessions.open_session(graph)
    generator = np.random.default_rng(0)
    made = []
    for height, width in ((20, 31), (33, 12), (9, 9), (5, 7), (12, 16), (24, 13), (8, 8)):
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        made.append(to_size_of_graph(Image.fromarray(image), config))
        alone, ready = (
            255 * session.run(None, {"images": pixels[None]})[0] for pixels in (image, made[-1])
        )
        assert np.abs(alone - ready).max() < 1.01
        assert (np.abs(alone - ready) > 0.01).mean() < 0.12
    assert len({array.shape for array in made}) == 1


def test_files_that_are_no_model_are_refused(model_path, tmp_path):
    with pytest.raises(ModelError, match="no file"):
        Scorer(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match=r"the model is \d+ bytes; expected the path") as told:
        Scorer(model_path.read_bytes())
    assert len(str(told.value)) < 200
    (tmp_path / "junk.onnx").write_bytes(b"\x08\x07junk")
    with pytest.raises(ModelError, match="not an ONNX model"):
        Scorer(tmp_path / "junk.onnx")
    (tmp_path / "other.onnx").write_bytes(b"\x12\x06\0\0ORTM")  # a message, and a header of ORT's
    with pytest.raises(ModelError, match="ONNX Runtime's own format"):
        Scorer(tmp_path / "other.onnx")
    for size in (0, 1, 10, 200, 600):
        (tmp_path / "cut.onnx").write_bytes(model_path.read_bytes()[:size])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            Scorer(tmp_path / "cut.onnx")
    sample = os.path.join(os.path.dirname(onnxruntime.__file__), "datasets", "mul_1.onnx")
    with pytest.raises(ModelError, match="was not exported by isomax"):
        Scorer(sample)


def test_find_images_walks_folders_in_order(tmp_path):
    for name in ("b/2.jpg", "a/1.PNG", "a/c/0.webp", "a/notes.txt", "z.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [os.path.relpath(path, tmp_path) for path in find_images([tmp_path])]
    assert found == ["z.jpeg", "a/1.PNG", "a/c/0.webp", "b/2.jpg"]
    assert list(find_images([tmp_path / "a/notes.txt"])) == [str(tmp_path / "a/notes.txt")]


def test_find_images_follows_links_and_reads_each_folder_once(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("in/b.jpe", "elsewhere/z.JFIF"):
        (tmp_path / name).touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "same").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken").symlink_to(tmp_path / "nowhere")
    found = [os.path.relpath(path, tmp_path) for path in find_images([tmp_path / "in"])]
    assert found == ["in/b.jpe", "in/link/z.JFIF"]


def test_a_folder_of_a_hundred_thousand_gives_its_first_rows_at_once(scorer, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(100_000):
        file = folder / f"{number:06}.png"
        if number % 10_000 == 0:  # a file has not many more names
            original_file = file
            file.write_bytes(encoded(colour(250, 0, 0)))
        else:
            os.link(original_file, file)
    opened = []
    original = scorer._decode
    tracemalloc.start()
    try:
        scorer._decode = lambda *args: opened.append(args) or original(*args)
        rows = scorer.stream(find_images([folder]))
        first = list(islice(rows, 40))
        rows.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        del scorer._decode
        shutil.rmtree(folder)
    assert [os.path.basename(result.source) for result in first[:2]] == ["000000.png", "000001.png"]
    assert not any(result.error for result in first)
    assert len(opened) < 200
    assert peak < 60_000_000  # the names


def test_memory_does_not_grow_with_the_number_of_inputs(scorer):
    """The stream takes inputs as it goes: at most three batches ahead of what it gave."""
    taken = 0

    def inputs():
        nonlocal taken
        for _ in range(200):
            taken += 1
            yield colour(9, 9, 9)

    for given, _ in enumerate(scorer.stream(inputs(), batch_size=8)):
        assert taken <= given + 1 + 4 * 8


def test_one_scorer_serves_many_threads(scorer):
    expected = scorer.score(colour(200, 0, 0))
    seen: list[list[Result]] = []
    threads = [
        threading.Thread(target=lambda: seen.append(scorer.score(colour(200, 0, 0))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 8


def test_only_numpy_onnxruntime_and_pillow_are_imported():
    code = (
        "import sys, isomax_adapters.runtime.scorer as r;"
        "heavy = {'torch', 'timm', 'onnx', 'pandas', 'mlflow', 'scipy'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("chosen", [None, "0"])
def test_nothing_is_reported_unless_that_is_asked_for(chosen):
    """As ONNX Runtime itself would, from a process that had no say before."""
    known = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    code = "import isomax_adapters.runtime.scorer, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=known | ({} if chosen is None else {"ORT_DISABLE_TELEMETRY": chosen}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (chosen or "1")
