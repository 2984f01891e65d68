"""A network whose backbone computes in half precision or in 8 bits, and its head in float32.

The distances of the head, and the score after it, tell images apart by small differences: they
keep float32 in every precision.
"""

import ast
import logging
import tempfile
from collections.abc import Collection, Iterable
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

PRECISIONS = ("fp32", "fp16", "int8")
_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch.onnx notes the modules a node comes from
# what is not here stays float: normalisation, softmax, global pooling
_QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "MaxPool")


def split(
    network: onnx.ModelProto, classifiers: Collection[str]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Cut a network into backbone and head, where the features go into the classifier.

    :param network: as ``torch.onnx`` exports it, input ``pixels``
    :param classifiers: names of the modules that give the logits
    :return: the backbone, ``pixels`` -> features, and the head, features -> logits; a distilled
        model has several features
    :raises ValueError: if no node of the network comes from these modules
    """
    constants = {tensor.name for tensor in network.graph.initializer}
    behind: set[str] = set()  # what the classifiers give and all that is computed from it
    features: dict[str, None] = {}
    for node in network.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "[]")
        inputs = [name for name in node.input if name and name not in constants]
        if behind.isdisjoint(inputs) and set(classifiers).isdisjoint(ast.literal_eval(scopes)):
            continue
        features.update(dict.fromkeys(name for name in inputs if name not in behind))
        behind.update(node.output)
    if not features:
        raise ValueError(
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
    """Static quantisation: 8 bits for activations, 7 for weights, one scale per channel.

    With the eighth bit, sums of products overflow on processors without VNNI, and the same file
    would give other scores there.

    :param pixels: batches ``[N, 3, h, w]`` of preprocessed ID images; the ranges of the
        activations are theirs
    """
    operators = list(_QUANTIZED)
    # between layer normalisations a few channels grow far larger than the others
    if all(node.op_type != "LayerNormalization" for node in backbone.graph.node):
        operators.append("Add")
    with tempfile.TemporaryDirectory() as scratch:
        plain, inferred, quantized = (Path(scratch) / f"{name}.onnx" for name in "abc")
        onnx.save(backbone, str(plain))
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
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logger.setLevel(level)
        return onnx.load(str(quantized))


class _Batches(CalibrationDataReader):
    def __init__(self, name: str, pixels: Iterable[np.ndarray]) -> None:
        self._feeds = ({name: batch} for batch in pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
