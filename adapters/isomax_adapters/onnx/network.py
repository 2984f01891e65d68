"""Networks and fitted detectors as ONNX, by torch's exporter."""

import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import compose, helper
from pytorch_ood.api import Detector
from torch import Tensor, nn

from isomax_adapters.onnx.precision import split
from isomax_adapters.onnx.scorers import (
    kind_of,
    scorer_of,
    why_network_too_large,
    why_not_exported,
    why_too_large,
)
from isomax_adapters.onnx.verifying import ExportError
from isomax_adapters.pytorch_ood import Parts
from isomax_adapters.pytorch_ood.saving import state_of

SCORE = "detector/score"  #: the output of a network that has a detector


def export_network(
    model: nn.Module, input_size: tuple[int, int, int], outputs: Sequence[str] = ("logits",)
) -> onnx.ModelProto:
    """The network alone: ``pixels``, float ``[N, C, h, w]`` -> ``logits``.

    :param outputs: names of what the model gives
    :raises ExportError: if torch cannot export it, or no file can hold it
    """
    if reason := why_network_too_large(model):  # torch takes several times its size to find out
        raise ExportError(reason)
    return _to_onnx(model, torch.zeros(2, *input_size), "pixels", outputs, "this model")


def with_maps(parts: Parts, input_size: tuple[int, int, int]) -> onnx.ModelProto:
    """A network that gives its last feature maps too: ``logits``, ``maps``.

    :raises ExportError: if torch cannot export it
    """
    return export_network(_Maps(parts), input_size, ("logits", "maps"))


def with_detector(
    network: onnx.ModelProto,
    detector: Detector,
    name: str,
    parts: Parts,
    classifiers: Sequence[str],
) -> onnx.ModelProto:
    """A network with the scores of a fitted detector as its second output, :data:`SCORE`.

    :param network: as :func:`export_network` gives it, or :func:`with_maps` for a detector of
        feature maps
    :param name: of the detector
    :param classifiers: names of the layers that give the logits
    :raises ExportError: if the detector cannot be part of a graph, with the nearest that can
    """
    held = sum(tensor.nbytes for tensor in state_of(detector)[0].values())
    reason = why_not_exported(name, detector) or why_too_large(name, held, network.ByteSize())
    if reason:
        raise ExportError(reason)
    logits, *rest = (output.name for output in network.graph.output)
    kind = kind_of(detector)
    if kind == "logits":
        given = logits
    elif kind == "feature_maps":
        (given,) = rest
    else:
        backbone, _ = split(network, classifiers)
        given = backbone.graph.output[0].name
    example = _given(network, given)
    scorer = compose.add_prefix(
        _to_onnx(
            _Flat(scorer_of(detector), kind == "features"), example, "given", ("score",), name
        ),
        "detector/",
    )
    _without_norms(scorer)
    opened = _with_output(network, given)
    opened.ir_version = scorer.ir_version
    return compose.merge_models(
        opened, scorer, io_map=[(given, "detector/given")],
        outputs=[logits, SCORE],
    )  # fmt: skip


class _Maps(nn.Module):
    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts, self.model = parts, parts.model  # whose parameters are then this one's

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.parts.feature_maps(pixels)
        return self.parts.classify_maps(maps), maps


class _Flat(nn.Module):
    """Of features that a convolution as classifier keeps as 1x1 maps."""

    def __init__(self, scorer: nn.Module, features: bool) -> None:
        super().__init__()
        self.scorer, self.features = scorer, features

    def forward(self, given: Tensor) -> Tensor:
        score: Tensor = self.scorer(given.flatten(1) if self.features else given)
        return score.reshape(-1)


def _example(network: onnx.ModelProto) -> Tensor:
    sides = [d.dim_value for d in network.graph.input[0].type.tensor_type.shape.dim[1:]]
    return torch.zeros(2, *sides)


def _given(network: onnx.ModelProto, name: str) -> Tensor:
    """What a tensor of the graph is for some pixels: torch's exporter takes an example of it."""
    pixels = torch.rand(_example(network).shape).numpy()
    opened = _with_output(network, name).SerializeToString()
    session = onnxruntime.InferenceSession(opened)
    (found,) = session.run([name], {network.graph.input[0].name: pixels})
    return torch.from_numpy(found)


def _without_norms(model: onnx.ModelProto) -> None:
    """Norms as roots of sums of squares: ONNX Runtime before 1.18 has no ReduceL2 of float64."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "ReduceL2":
            nodes.append(node)
            continue
        (norm,), square = node.output, f"{node.output[0]}/square"
        node.op_type, node.output[0] = "ReduceSumSquare", square
        nodes += [node, helper.make_node("Sqrt", [square], [norm])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _with_output(network: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(network)
    if name not in {output.name for output in model.graph.output}:
        value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(value)
    return model


def _to_onnx(
    module: nn.Module, example: Tensor, given: str, outputs: Sequence[str], what: str
) -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                input_names=[given],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises of its own and of its dependencies'
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"torch.onnx cannot export {what}: {reason[0]}") from error
    assert program is not None
    found: onnx.ModelProto = program.model_proto
    return found
