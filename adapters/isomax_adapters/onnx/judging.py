"""Whether a network of lower precision is still the same model, and which layers are to blame."""

import ast
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime

from isomax_adapters.onnx.precision import SCOPES

KEPT_MARGIN = 0.8  # of the mean margin, at least
KEPT_ORDER = 0.8  # correlation of the scores, at least
LOST_ACCURACY = 0.02  # at most, and what so few images leave open
BLAMED = 3  # layers


def why_another_model(
    logits: np.ndarray,
    reduced: np.ndarray,
    scores: np.ndarray,
    reduced_scores: np.ndarray,
    temperature: float,
    labels: Sequence[int] | None = None,
) -> str:
    r"""What a reduced network has lost; empty if it is what may be.

    The margin of an image is the probability of the label that the model gives it less the largest
    of the others: another label where the model wavers costs next to nothing, where it is sure the
    margin and its opposite. Accuracy may fall by ``LOST_ACCURACY`` and two standard errors,
    :math:`2 \sqrt{n_{10} + n_{01}}` of :math:`N` images, of which :math:`n_{10}` are right only
    before and :math:`n_{01}` only after.

    :param logits: of the model, :math:`N \times C`
    :param reduced: of the reduced network, the same
    :param scores: outlier scores of the model, :math:`N`
    :param reduced_scores: of the reduced network, the same
    :param temperature: that makes probabilities of the model's logits
    :param labels: the right classes, :math:`N`, if they are known
    """
    chosen = logits.argmax(axis=1)
    before, after = (_margins(one / temperature, chosen).mean() for one in (logits, reduced))
    order = np.corrcoef(scores, reduced_scores)[0, 1] if scores.std() > 0 else 1.0
    found = []
    if not after >= KEPT_MARGIN * before:  # NaN is not
        found.append(f"the mean margin falls from {before:.3f} to {after:.3f}")
    if not order >= KEPT_ORDER:
        found.append(f"the scores correlate by {order:.2f}")
    if labels is not None:
        right, still = chosen == labels, reduced.argmax(axis=1) == labels
        lost = int(right.sum()) - int(still.sum())
        if lost > LOST_ACCURACY * len(right) + 2 * (right != still).sum() ** 0.5:
            found.append(f"the accuracy falls from {right.mean():.1%} to {still.mean():.1%}")
    if not found:
        return ""
    same = (reduced.argmax(axis=1) == chosen).mean()
    return f"{'; '.join(found)}; {same:.0%} of {len(chosen)} labels the same"


def worst_layers(model: onnx.ModelProto, images: Sequence[np.ndarray]) -> list[tuple[str, float]]:
    """The layers whose output suffers most from its own rounding to 8 bits.

    :param model: with pairs of QuantizeLinear and DequantizeLinear, input ``images``
    :param images: batches, uint8
    :return: at most ``BLAMED`` names of modules, each with the power of its output over that of
        the rounding, in decibels, of its median channel; the smallest first
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    pairs = [
        (producers[node.input[0]].input[0], node.output[0])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in producers
    ]
    names = sorted({name for pair in pairs for name in pair})
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    # none of the pairs is fused with what lies between them
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options)
    outputs = [
        dict(zip(names, session.run(names, {"images": batch}), strict=True)) for batch in images
    ]
    order = {name: place for place, node in enumerate(model.graph.node) for name in node.output}
    noise: dict[str, float] = {}
    # of those that lose all, the first: what comes after it has nothing left to lose
    for before, after in sorted(pairs, key=lambda pair: order.get(pair[0], -1)):
        ratio = _decibels(*([found[name] for found in outputs] for name in (before, after)))
        module = _module(producers, before)
        noise[module] = min(ratio, noise.get(module, np.inf))
    return sorted(noise.items(), key=lambda item: item[1])[:BLAMED]


def _decibels(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """Power over that of the rounding, of the median channel: a large one would hide the others."""
    whole, rounded = np.concatenate(before), np.concatenate(after)
    rest = tuple(axis for axis in range(whole.ndim) if axis != 1)
    signal = np.square(whole, dtype=np.float64).sum(axis=rest)
    lost = np.square(whole - rounded, dtype=np.float64).sum(axis=rest)
    alive = signal > 0
    if not alive.any():
        return float("inf")
    ratio = signal[alive] / np.maximum(lost[alive], np.finfo(np.float64).tiny)
    return round(float(np.median(10 * np.log10(ratio))), 1)


def _margins(logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    rows = np.arange(len(chosen))
    own = probabilities[rows, chosen]
    probabilities[rows, chosen] = 0
    return own - probabilities.max(axis=1)


def _module(producers: dict[str, onnx.NodeProto], tensor: str) -> str:
    """The innermost module that a tensor comes from; its own name, if nothing says."""
    if tensor not in producers:
        return tensor
    scopes = {p.key: p.value for p in producers[tensor].metadata_props}.get(SCOPES, "[]")
    modules = [name for name in ast.literal_eval(scopes) if name]
    return modules[-2] if len(modules) > 1 else tensor
