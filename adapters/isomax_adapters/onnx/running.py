"""Graphs run while they are made, as ONNX Runtime may run them: optimised or not, on one thread or
more, images together or one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime


@dataclass(frozen=True)
class Way:
    """One of the ways to run a graph, that may differ in the last bits of what it gives."""

    optimised: bool = True
    threads: int = 1
    together: int = 64  #: images at a time

    def run(self, model: onnx.ModelProto, given: np.ndarray) -> list[np.ndarray]:
        """The outputs of a graph of one input."""
        session = session_of(model, self)
        name = session.get_inputs()[0].name
        batches = [given[at : at + self.together] for at in range(0, len(given), self.together)]
        found = [session.run(None, {name: batch}) for batch in batches]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]


OWN = Way()  #: how the scores are made that calibrate a file
WAYS: Sequence[Way] = (OWN, Way(together=1), Way(threads=2), Way(optimised=False, threads=2))


def session_of(model: onnx.ModelProto, way: Way = OWN) -> onnxruntime.InferenceSession:
    """A session on a graph in memory."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = way.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not way.optimised:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
