"""Networks and fitted detectors as ONNX, by torch's exporter."""

import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import compose, helper
from pytorch_ood.api import Detector
from torch import Tensor, nn

from isomax_adapters.onnx.graph import score_of_logits
from isomax_adapters.onnx.precision import split
from isomax_adapters.onnx.running import Way, session_of
from isomax_adapters.onnx.scorers import why_network_too_large, why_not_exported, why_too_large
from isomax_adapters.onnx.verifying import ExportError
from isomax_adapters.pytorch_ood import Parts, kind_of, state_of
from isomax_adapters.pytorch_ood.entries import WIRINGS

SCORE = "detector/score"  #: the output of a network that has a detector


@dataclass(frozen=True)
class Scored:
    """A network and what scores it, together and apart."""

    whole: onnx.ModelProto  #: ``pixels`` -> logits and, with a detector, :data:`SCORE`
    network: onnx.ModelProto  #: ``pixels`` -> logits, and what is scored if that is something else
    scorer: onnx.ModelProto  #: what is scored -> ``score``
    kind: str  #: what that is: ``logits``, ``features`` or ``feature_maps``

    def run(self, way: Way, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits, and what is scored, of images as the network gets them."""
        found = way.run(self.network, pixels)
        return found[0], found[-1]

    def scores(self, way: Way, given: np.ndarray) -> np.ndarray:
        """Of what is scored; pooled features may be rows."""
        dimensions = self.scorer.graph.input[0].type.tensor_type.shape.dim
        shape = [len(given), *(d.dim_value for d in dimensions[1:])]
        return way.run(self.scorer, given.reshape(shape))[0]


def with_score(network: onnx.ModelProto, score: str, num_classes: int) -> Scored:
    """A network that is scored by its logits.

    :param score: a name in ``isomax.functional.SCORES``
    """
    opset = next(o.version for o in network.opset_import if o.domain in ("", "ai.onnx"))
    scorer = score_of_logits(num_classes, score, opset, network.ir_version)
    return Scored(network, network, scorer, "logits")


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
) -> Scored:
    """A network that is scored by a fitted detector.

    :param network: as :func:`export_network` gives it, or :func:`with_maps` for a detector of
        feature maps
    :param name: of the detector
    :param classifiers: names of the layers that give the logits
    :raises ExportError: if the detector cannot be part of a graph, with the nearest that can
    """
    held = sum(tensor.nbytes for tensor in state_of(detector)[0].values())
    reason = why_not_exported(name) or why_too_large(name, held, network.ByteSize())
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
    opened = _with_output(network, given)
    plain = _to_onnx(
        _Flat(WIRINGS[name].network(detector), kind == "features"),
        _example_of(opened, given),
        "given",
        ("score",),
        name,
    )
    _without_norms(plain)
    scorer = compose.add_prefix(plain, "detector/")
    opened.ir_version = scorer.ir_version
    whole = compose.merge_models(
        opened, scorer, io_map=[(given, "detector/given")],
        outputs=[logits, SCORE],
    )  # fmt: skip
    return Scored(whole, opened, plain, str(kind))


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


def _example_of(network: onnx.ModelProto, name: str) -> Tensor:
    """What an output is for some pixels: torch's exporter takes an example of it."""
    pixels = torch.rand(_example(network).shape).numpy()
    (found,) = session_of(network).run([name], {network.graph.input[0].name: pixels})
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
