"""The best weights so far."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isomax_evaluation.output.files import write_whole

#: what a run goes through, each better by rule than the one before
MEANS, HEAD, WHOLE = range(3)

#: called with a model, which selection images it has right, its stage and what it is
Offer = Callable[[nn.Module, Tensor, int, str], None]


class Best:
    """Keeps the weights of the highest accuracy on the selection images, on disk.

    A few hundred images tell stages apart by some points only. What was trained longer is better by
    rule, so that it is kept unless what was before is clearly better, see :func:`clearly_better`.
    """

    def __init__(self, folder: Path, wanted: bool, is_main: bool) -> None:
        """
        :param folder: of the run
        :param wanted: whether the best weights are kept rather than the last
        :param is_main: of several processes one writes
        """
        self._path, self._wanted, self._is_main = folder / "best.pt", wanted, is_main
        self._right, self._stage, self._what = torch.zeros(0, dtype=torch.bool), -1, ""
        if wanted and self._path.is_file():  # of a run that was interrupted
            content = self._read()
            self._right, self._stage = content["right"], content["stage"]
            self._what = content["what"]

    def offer(self, model: nn.Module, right: Tensor, stage: int, what: str) -> None:
        """Keep a model if it is better than all before.

        :param right: of each selection image whether the model has it right, on the CPU
        :param stage: :data:`MEANS`, :data:`HEAD` or :data:`WHOLE`, none before one that was offered
        """
        if not self._wanted:
            return
        if stage == self._stage:
            better = int(right.sum()) > int(self._right.sum())
        else:
            better = self._stage < 0 or not clearly_better(self._right, right)
        if not better:
            return
        self._right, self._stage, self._what = right, stage, what
        if self._is_main:
            content = {"model": model.state_dict(), "right": right, "stage": stage, "what": what}
            write_whole(self._path, lambda partial: torch.save(content, partial))

    def put_into(self, model: nn.Module) -> str:
        """The best weights; what they are of. Nothing happens if none were kept."""
        if self._stage < 0:
            return ""
        model.load_state_dict(self._read()["model"])
        return self._what

    def _read(self) -> Any:
        return torch.load(self._path, map_location="cpu", weights_only=True)


def clearly_better(first: Tensor, second: Tensor) -> bool:
    """Whether more images are right in the first, by more than one standard error of the
    difference: the root of the number of those that are right in one of the two alone (McNemar).

    :param first: of each image whether it is right
    :param second: the same of another model
    """
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    return lost - won > math.sqrt(lost + won)
