"""The parts of the ONNX graph around the network: preprocessing before it, the verdict after it.

Written in ONNX's text format; needs onnx, and Pillow's version.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import PIL
from onnx import compose, numpy_helper, parser

from isomax_adapters.runtime.errors import InputError
from isomax_adapters.runtime.metadata import METADATA_KEY, scaled_size
from isomax_adapters.runtime.p_values import Steps, at_most

IR_VERSION = 9  # what ONNX Runtime 1.17 reads; nothing here takes a later one
_MODES = {"bicubic": "cubic", "bilinear": "linear"}

# Pillow's resampling, which timm's transforms use: antialiased, weights outside left out. ONNX
# Runtime spreads the channels of one image over its threads, so a batch is stacked into one
_RESIZE = """Resize<mode="{mode}", antialias=1, exclude_outside=1,
    coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.5>"""

# ONNX Runtime resizes the width first, and so did Pillow. Since 13 (its pull request 9549) it takes
# the height first where that shrinks, and by over twice as many pixels as the width. The first
# Resize then does the height alone; else it does both, and the second copies a small image
_VERTICAL_FIRST = """
        height, width = Split<axis=0, num_outputs=2>(size)
        new_height, new_width = Split<axis=0, num_outputs=2>(resized_size)
        less_height = Sub(height, new_height)
        less_width = Sub(width, new_width)
        twice = Add(less_width, less_width)
        nothing = Constant<value_ints=[0]>()
        bound = Max(twice, nothing)
        vertical_first = Greater(less_height, bound)
        tall_size = Concat<axis=0>(one, count, new_height, width)
        first_size = Where(vertical_first, tall_size, stacked_size)
        first_resized = {resize}(stacked, , , first_size)
        stacked_resized = {resize}(first_resized, , , stacked_size)
"""
_WIDTH_FIRST = "stacked_resized = {resize}(stacked, , , stacked_size)"

_SCORES = {
    "entropic_score": """
        log_posteriors = LogSoftmax<axis=1>(logits)
        posteriors = Exp(log_posteriors)
        terms = Mul(posteriors, log_posteriors)
        negative_entropy = ReduceSum<keepdims=0>(terms, axis)
        score = Neg(negative_entropy)
    """,
    "energy_score": """
        log_sum = ReduceLogSumExp<keepdims=0>(logits, axis)
        score = Neg(log_sum)
    """,
    "minimum_distance_score": """
        largest = ReduceMax<keepdims=0>(logits, axis)
        score = Neg(largest)
    """,
    "max_mean_logit_entropy_score": """
        log_posteriors = LogSoftmax<axis=1>(logits)
        posteriors = Exp(log_posteriors)
        terms = Mul(posteriors, log_posteriors)
        negative_entropy = ReduceSum<keepdims=0>(terms, axis)
        largest = ReduceMax<keepdims=0>(logits, axis)
        mean = ReduceMean<keepdims=0>(logits, axis)
        max_mean = Add(largest, mean)
        negative_score = Add(max_mean, negative_entropy)
        score = Neg(negative_score)
    """,
}


def preprocessing(config: dict[str, Any], opset: int, ir_version: int) -> onnx.ModelProto:
    """timm's evaluation transform, with the Pillow of this environment, as a graph.

    Input ``images``, uint8 ``[N, H, W, C]``, any size: grey, RGB, or RGB and a fourth band; output
    ``pixels``, float ``[N, C, h, w]``.

    :param config: as ``timm.data.resolve_model_data_config`` gives it
    :raises InputError: if the configuration has a resampling or crop that cannot be exported, or
        not one mean and standard deviation for each channel
    """
    if config["interpolation"] not in _MODES:
        raise InputError(
            f"interpolation {config['interpolation']!r} has no ONNX counterpart; export a model "
            f"whose preprocessing uses {', '.join(_MODES)}"
        )
    channels, height, width = config["input_size"]
    for name in ("mean", "std"):
        if len(config[name]) != channels:
            raise InputError(f"{name} has {len(config[name])} values for {channels} channels")
    scaled = scaled_size(config)
    crop_mode = config.get("crop_mode") or "center"
    passes = _VERTICAL_FIRST if int(PIL.__version__.split(".")[0]) >= 13 else _WIDTH_FIRST
    resizing = passes.format(resize=_RESIZE.format(mode=_MODES[config["interpolation"]]))
    # v / 255 normalised, as one multiplication and one addition
    factor = [1 / (255 * std) for std in config["std"]]
    offset = [-mean / std for mean, std in zip(config["mean"], config["std"], strict=True)]
    text = f"""
    <ir_version: {ir_version}, opset_import: ["": {opset}]>
    preprocessing (uint8[N, H, W, {channels}] images) => (
        float[N, {channels}, {height}, {width}] pixels
    ) {{
        planes = Transpose<perm=[0, 3, 1, 2]>(images)
        size = Shape<start=2>(planes)
        {_target_size(crop_mode, scaled)}
        one = Constant<value_ints=[1]>()
        all = Constant<value_ints=[-1]>()
        channels = Constant<value_ints=[{channels}]>()
        stacked_shape = Concat<axis=0>(one, all, size)
        stacked = Reshape(planes, stacked_shape)
        count = Shape<start=1, end=2>(stacked)
        stacked_size = Concat<axis=0>(one, count, resized_size)
        {resizing}
        resized_shape = Concat<axis=0>(all, channels, resized_size)
        resized = Reshape(stacked_resized, resized_shape)
        {_crop(crop_mode, (height, width), config["mean"])}
        cropped_float = Cast<to=1>(cropped)
        factor = Constant<value=float[1, {channels}, 1, 1] {{{_list(factor)}}}>()
        offset = Constant<value=float[1, {channels}, 1, 1] {{{_list(offset)}}}>()
        scaled = Mul(cropped_float, factor)
        pixels = Add(scaled, offset)
    }}
    """
    return parser.parse_model(text)


# how many calibration scores are at least as large, or tie: what ties with each lies in rows of a
# square table, descending, so that of each image's score a column and a row are compared instead of
# all. Of logits that are NaN or infinite none is, whatever the score. The comparison with the
# largest float is one that no runtime leaves out
_P_VALUE = """
        each = Unsqueeze(score, axis)
        in_column = GreaterOrEqual(bounds_of_rows, each)
        in_column_numbers = Cast<to=7>(in_column)
        rows = ReduceSum<keepdims=0>(in_column_numbers, axis)
        rows_before = Sub(rows, one_row)
        row = Max(rows_before, no_row)
        of_row = Gather<axis=0>(bounds, row)
        in_row = GreaterOrEqual(of_row, each)
        in_row_numbers = Cast<to=7>(in_row)
        last = ReduceSum<keepdims=0>(in_row_numbers, axis)
        skipped = Mul(row, row_width)
        counted = Add(skipped, last)
        at_most_all = Min(counted, most)
        sizes = Abs(logits)
        largest_size = Constant<value_float=3.4028234663852886e38>()
        finite = LessOrEqual(sizes, largest_size)
        finite_numbers = Cast<to=7>(finite)
        all_finite = ReduceMin<keepdims=0>(finite_numbers, axis)
        at_least = Mul(at_most_all, all_finite)
        p_value = Gather<axis=0>(p_values, at_least)
        is_ood = LessOrEqual(p_value, alpha)
"""


def verdict(
    num_classes: int,
    score: str,
    temperature: float,
    alpha: float,
    steps: Steps,
    opset: int,
    ir_version: int,
) -> onnx.ModelProto:
    """From ``raw`` logits, float ``[N, C]``, to the outputs that users read.

    :param score: a name in ``isomax.functional.SCORES``; if it is none of these, a detector's, the
        graph takes the scores too, as ``outlier``, float ``[N]``
    :param alpha: false-alarm rate: is_ood is whether the p-value is at most that
    :param steps: what ties with the calibration scores, and p-values
    """
    width = math.isqrt(len(steps.bounds) - 1) + 1
    table = np.full((width, width), -np.inf, np.float32)
    table.flat[: len(steps.bounds)] = steps.bounds
    tensors = {
        "bounds": table,
        "bounds_of_rows": table[:, 0],
        "p_values": steps.values,
        # of the p-values the largest that is: float32 in any runtime, as they are
        "alpha": np.array(np.max(steps.values[at_most(steps.values, alpha)], initial=0)),
        "row_width": np.array([width]),
        "most": np.array([len(steps.bounds)]),  # what fills the table is below any score but -inf
        "one_row": np.array([1]),
        "no_row": np.array([0]),
    }
    text = f"""
    <ir_version: {ir_version}, opset_import: ["": {opset}]>
    verdict (float[N, {num_classes}] raw{", float[N] outlier" if score not in _SCORES else ""}) => (
        int64[N] label, float[N] confidence, float[N] score, bool[N] is_ood,
        float[N, {num_classes}] logits, float[N, {num_classes}] probabilities, float[N] p_value
    ) {{
        logits = Identity(raw)
        axis = Constant<value_ints=[1]>()
        temperature = Constant<value_float={_number(temperature)}>()
        label = ArgMax<axis=1, keepdims=0>(logits)
        tempered = Div(logits, temperature)
        probabilities = Softmax<axis=1>(tempered)
        confidence = ReduceMax<keepdims=0>(probabilities, axis)
        {_SCORES.get(score, "score = Identity(outlier)")}
        {_P_VALUE}
    }}
    """
    model = parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in tensors.items()
    )
    return model


def score_of_logits(num_classes: int, score: str, opset: int, ir_version: int) -> onnx.ModelProto:
    """The score alone: ``logits``, float ``[N, C]`` -> ``score``, as :func:`verdict` has it."""
    return parser.parse_model(f"""
    <ir_version: {ir_version}, opset_import: ["": {opset}]>
    scorer (float[N, {num_classes}] logits) => (float[N] score) {{
        axis = Constant<value_ints=[1]>()
        {_SCORES[score]}
    }}
    """)


def assemble(
    network: onnx.ModelProto,
    config: dict[str, Any],
    metadata: dict[str, Any],
) -> onnx.ModelProto:
    """Preprocessing, network and verdict as one checked model.

    :param network: one input, float ``[N, C, h, w]``; logits, and with a detector its scores
    :param metadata: stored as JSON under ``isomax`` in ``metadata_props``; score, temperature,
        alpha, calibration scores and tolerance are its own
    :raises ValueError: if the parts do not fit or the result is not valid ONNX
    """
    opset = next(o.version for o in network.opset_import if o.domain in ("", "ai.onnx"))
    versions = (opset, network.ir_version)
    (pixels,), given = network.graph.input, [output.name for output in network.graph.output]
    classes = len(metadata["class_names"])
    network = compose.add_prefix(network, "network/")
    front = compose.merge_models(
        preprocessing(config, *versions),
        network,
        io_map=[("pixels", f"network/{pixels.name}")],
    )
    model = compose.merge_models(
        front,
        verdict(
            classes,
            metadata["score"],
            metadata["temperature"],
            metadata["alpha"],
            Steps.of(metadata),
            *versions,
        ),
        io_map=[
            (f"network/{name}", part) for name, part in zip(given, ("raw", "outlier"), strict=False)
        ],
    )
    # merging repeats them, and quantisation adds some that nothing uses
    used = {
        o.domain: o for o in model.opset_import if o.domain in {n.domain for n in model.graph.node}
    }
    del model.opset_import[:]
    model.opset_import.extend(used.values())
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    model.producer_name = "isomax"
    model.graph.name = "isomax"
    model.ir_version = min(model.ir_version, IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _target_size(crop_mode: str, scaled: Sequence[int]) -> str:
    if crop_mode == "squash":
        return f"resized_size = Constant<value_ints=[{_list(scaled)}]>()"
    if crop_mode == "center" and scaled[0] == scaled[1]:
        # torchvision: the shorter side becomes the target, the longer int(target * long / short)
        return f"""
        target = Constant<value_ints=[{scaled[0]}]>()
        shortest = ReduceMin<keepdims=1>(size)
        longer = Mul(size, target)
        resized_size = Div(longer, shortest)
        """
    if crop_mode in ("center", "border"):
        # timm's ResizeKeepRatio: the shorter (center) or longer (border) side decides
        reduce = "ReduceMin" if crop_mode == "center" else "ReduceMax"
        return f"""
        target = Constant<value_floats=[{_list(map(float, scaled))}]>()
        size_float = Cast<to=1>(size)
        ratios = Div(size_float, target)
        ratio = {reduce}<keepdims=1>(ratios)
        unrounded = Div(size_float, ratio)
        rounded = Round(unrounded)
        resized_size = Cast<to=7>(rounded)
        """
    raise InputError(f"crop mode {crop_mode!r} cannot be exported; use center, squash or border")


def _crop(crop_mode: str, size: Sequence[int], mean: Sequence[float]) -> str:
    slices = f"""
        crop_size = Constant<value_ints=[{_list(size)}]>()
        two = Constant<value_float=2.0>()
        axes = Constant<value_ints=[2, 3]>()
        room = Sub(padded_size, crop_size)
        room_float = Cast<to=1>(room)
        half = Div(room_float, two)
        rounded_half = Round(half)
        start = Cast<to=7>(rounded_half)
        end = Add(start, crop_size)
        cropped = Slice(padded, start, end, axes)
    """
    if crop_mode != "border":
        return "padded = Identity(resized)\npadded_size = Identity(resized_size)" + slices
    fill = [float(round(255 * value)) for value in mean]
    # borders in the colour of the mean: shift it to zero, pad with zeros, shift back
    return (
        f"""
        fill = Constant<value=float[1, {len(fill)}, 1, 1] {{{_list(fill)}}}>()
        target_size = Constant<value_ints=[{_list(size)}]>()
        zero = Constant<value_ints=[0, 0]>()
        one_half = Constant<value_ints=[2, 2]>()
        missing = Sub(target_size, resized_size)
        lacking = Max(missing, zero)
        before = Div(lacking, one_half)
        after = Sub(lacking, before)
        pads = Concat<axis=0>(zero, before, zero, after)
        resized_float = Cast<to=1>(resized)
        shifted = Sub(resized_float, fill)
        padded_shifted = Pad(shifted, pads)
        padded = Add(padded_shifted, fill)
        padded_size = Shape<start=2>(padded)
    """
        + slices
    )


def _number(value: float) -> str:
    return repr(float(value))


def _list(values: Any) -> str:
    return ", ".join(_number(v) if isinstance(v, float) else str(v) for v in values)
