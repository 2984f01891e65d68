"""The best weights so far."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isomax_evaluation.output.files import write_whole


class Best:
    """Keeps the weights of the highest accuracy on the selection images, on disk."""

    def __init__(self, folder: Path, wanted: bool, is_main: bool) -> None:
        """
        :param folder: of the run
        :param wanted: whether the best weights are kept rather than the last
        :param is_main: of several processes one writes
        """
        self._path, self._wanted, self._is_main = folder / "best.pt", wanted, is_main
        self.accuracy, self.what = -1.0, ""
        if wanted and self._path.is_file():  # of a run that was interrupted
            about = json.loads(self._read()["about"])
            self.accuracy, self.what = about["accuracy"], about["what"]

    def offer(self, model: nn.Module, accuracy: float, what: str) -> None:
        """Keep a model if it is better than all before."""
        if not self._wanted or accuracy <= self.accuracy:
            return
        self.accuracy, self.what = accuracy, what
        if self._is_main:
            about = json.dumps({"accuracy": accuracy, "what": what})
            content = {"model": model.state_dict(), "about": about}
            write_whole(self._path, lambda partial: torch.save(content, partial))

    def put_into(self, model: nn.Module) -> str:
        """The best weights; what they are of. Nothing happens if none were kept."""
        if self.accuracy < 0:
            return ""
        model.load_state_dict(self._read()["model"])
        return self.what

    def _read(self) -> Any:
        return torch.load(self._path, map_location="cpu", weights_only=True)
