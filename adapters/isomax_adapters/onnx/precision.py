"""A network whose backbone computes in half precision or in 8 bits, and its head in float32.

The distances of the head, and the score after it, tell images apart by small differences: they
keep float32 in every precision.
"""

import ast
import logging
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import compose
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from isomax_adapters.runtime.errors import InputError

PRECISIONS = ("fp32", "fp16", "int8")
SCOPES = "pkg.torch.onnx.name_scopes"  #: where torch.onnx notes the modules a node comes from
# what is not here stays float: normalisation, softmax, gates, global pooling. A Relu or Clip is
# merged into what comes before it, so that the range is the one after the clip
_QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "MaxPool")
# below this, x sigmoid(x) is within 0.0005 of zero, and a sigmoid within 0.0001 of its end
_FLAT = 10.0
# of a channel's weights: of a channel that is off, with weights of 1e-10, the bias in units of
# their scale and the input's would not fit into 32 bits
_SMALLEST_WEIGHT = 1e-4


def split(
    network: onnx.ModelProto, classifiers: Collection[str]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Cut a network into backbone and head, where the features go into the classifier.

    :param network: as ``torch.onnx`` exports it, input ``pixels``
    :param classifiers: names of the modules that give the logits
    :return: the backbone, ``pixels`` -> features, and the head, features -> logits; a distilled
        model has several features
    :raises InputError: if no node of the network comes from these modules
    """
    constants = {tensor.name for tensor in network.graph.initializer}
    behind: set[str] = set()  # what the classifiers give and all that is computed from it
    features: dict[str, None] = {}
    for node in network.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), "[]")
        inputs = [name for name in node.input if name and name not in constants]
        if behind.isdisjoint(inputs) and set(classifiers).isdisjoint(ast.literal_eval(scopes)):
            continue
        features.update(dict.fromkeys(name for name in inputs if name not in behind))
        behind.update(node.output)
    if not features:
        raise InputError(
            f"no node of the exported network comes from {', '.join(classifiers)}, so the head "
            "cannot be kept in float32; export this model as fp32"
        )
    cut = onnx.utils.Extractor(network)
    logits = [output.name for output in network.graph.output]
    backbone = cut.extract_model([i.name for i in network.graph.input], list(features))
    return backbone, cut.extract_model(list(features), logits)


def join(backbone: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """The whole network again."""
    head = compose.add_prefix(head, "head/")
    return compose.merge_models(
        backbone, head, io_map=[(o.name, f"head/{o.name}") for o in backbone.graph.output]
    )


def to_fp16(backbone: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16; input and features stay float32."""
    converted = convert_float_to_float16(backbone, keep_io_types=True)
    OnnxModel.graph_topological_sort(converted.graph)  # the casts were added at the end
    return converted


def to_int8(backbone: onnx.ModelProto, pixels: Iterable[np.ndarray]) -> onnx.ModelProto:
    """Static quantisation: 8 bits for activations and weights, one scale per channel of these.

    Without VNNI, processors add products of activations (unsigned) and weights (signed) by pairs in
    16 bits, but for depthwise convolutions, and the same file would give other scores there. So a
    channel's scale is such that no pair of neighbours is above 128: between 7 and 8 bits.

    A range is the one that matters to what comes next: after a clip, and where a gate is not flat.

    :param pixels: batches ``[N, 3, h, w]`` of preprocessed ID images; the ranges of the
        activations are theirs
    """
    operators = list(_QUANTIZED)
    # between layer normalisations a few channels grow far larger than the others
    if all(node.op_type != "LayerNormalization" for node in backbone.graph.node):
        operators.append("Add")
    with tempfile.TemporaryDirectory() as scratch:
        plain, inferred, quantized = (Path(scratch) / f"{name}.onnx" for name in "abc")
        onnx.save(_clipped_before_gates(backbone), str(plain))
        logger = logging.getLogger("onnxruntime.quantization")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            # ONNX Runtime's optimisations would write operators of its own
            quant_pre_process(plain, inferred, skip_optimization=True, skip_symbolic_shape=True)
            quantize_static(
                inferred,
                quantized,
                _Batches(backbone.graph.input[0].name, pixels),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=operators,
                nodes_to_exclude=_read_by_softmax(backbone),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"TensorQuantOverrides": _scales(onnx.load(str(inferred)))},
            )
        finally:
            logger.setLevel(level)
        return onnx.load(str(quantized))


def _read_by_softmax(backbone: onnx.ModelProto) -> list[str]:
    """The nodes that give a softmax what it reads. Between 8 bits and 8 bits it would be computed
    in these, and thin attention be cut off at 255: with ONNX Runtime 1.19 and 1.23 (1.32 is right)
    a transformer then gives all images the same features."""
    read = {node.input[0] for node in backbone.graph.node if node.op_type == "Softmax"}
    return [node.name for node in backbone.graph.node if node.output[0] in read]


def _clipped_before_gates(backbone: onnx.ModelProto) -> onnx.ModelProto:
    """The same function, with the clip that a HardSwish, HardSigmoid, Sigmoid or SiLU is or all but
    is as a node of its own before it."""
    model = onnx.ModelProto()
    model.CopyFrom(backbone)
    graph = model.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type not in ("Conv", "Gemm", "MatMul", "Add") or node.output[0] in outputs:
            continue
        bounds = _bounds(readers.get(node.output[0], []))
        if bounds is None:
            continue
        output = node.output[0]
        limits = [f"{output}/{end}" for end in ("low", "high")][: len(bounds)]
        for name, value in zip(limits, bounds, strict=True):
            graph.initializer.append(
                onnx.numpy_helper.from_array(np.array(value, np.float32), name)
            )
        node.output[0] = f"{output}/wide"
        nodes.append(onnx.helper.make_node("Clip", [node.output[0], *limits], [output]))
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _bounds(readers: Sequence[onnx.NodeProto]) -> tuple[float, ...] | None:
    """Below what, and above what if there is such, those who read a tensor no longer tell."""
    kinds = sorted(node.op_type for node in readers)
    if kinds == ["HardSwish"]:
        return (-3.0,)
    if kinds == ["HardSigmoid"]:
        slope, offset = (
            next((a.f for a in readers[0].attribute if a.name == name), default)
            for name, default in (("alpha", 0.2), ("beta", 0.5))
        )
        return (-offset / slope, (1 - offset) / slope)
    if kinds == ["Sigmoid"]:
        return (-_FLAT, _FLAT)
    if kinds == ["Mul", "Sigmoid"]:  # SiLU, if the one multiplies by the other
        gate, product = sorted(readers, key=lambda node: node.op_type == "Mul")
        return (-_FLAT,) if gate.output[0] in product.input else None
    return None


def _scales(backbone: onnx.ModelProto) -> dict[str, list[dict[str, object]]]:
    """The largest weight of each channel, as ONNX Runtime's overrides have it, so that no two
    neighbours of a row that is added up are together above the 128th part of 16 bits."""
    tensors = {tensor.name: tensor for tensor in backbone.graph.initializer}
    overrides: dict[str, list[dict[str, object]]] = {}
    for node in backbone.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in tensors:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        weights = onnx.numpy_helper.to_array(tensors[node.input[1]]).astype(np.float64)
        if node.op_type != "Conv" and weights.ndim != 2:
            continue
        axis = 0 if node.op_type == "Conv" or attributes.get("transB") else 1
        rows = np.moveaxis(weights, axis, 0)
        largest = np.abs(rows).reshape(len(rows), -1).max(axis=1)
        depthwise = node.op_type == "Conv" and 1 < attributes.get("group", 1) == len(rows)
        if not (depthwise and rows.shape[1] == 1):
            for order in (rows, np.moveaxis(rows, 1, -1)):  # channels last, or the kernel
                row = order.reshape(len(rows), -1)
                pairs = np.abs(row[:, 1:] + row[:, :-1]).max(axis=1, initial=0)
                largest = np.maximum(largest, pairs)
        kind = {"axis": axis, "quant_type": QuantType.QInt8, "symmetric": True}
        overrides[node.input[1]] = [
            {**kind, "rmin": -value, "rmax": value}
            for value in np.maximum(largest, _SMALLEST_WEIGHT).astype(np.float32)
        ]
    return overrides


class _Batches(CalibrationDataReader):
    def __init__(self, name: str, pixels: Iterable[np.ndarray]) -> None:
        self._feeds = ({name: batch} for batch in pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
