"""What was computed, kept under a key of all that it depends on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import read_json, write_json


def key_of(about: Mapping[str, Any]) -> str:
    """24 hexadecimal digits that change with what something depends on, which is given as JSON."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Cache:
    """Results as JSON, a file for each. What another run has asked for does no harm; what is
    deleted is computed again."""

    folder: Path

    def read(self, about: Mapping[str, Any]) -> Any | None:
        """What is kept; ``None`` if nothing is.

        :raises InputError: if its file is damaged
        """
        path = self._path(about)
        if not path.is_file():
            return None
        try:
            return read_json(path)["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({error}); delete that file, and it is computed again"
            ) from error

    def write(self, about: Mapping[str, Any], result: Any) -> None:
        """Keep something other than ``None``, whole or not at all."""
        write_json(self._path(about), {"about": about, "result": result})

    def kept(self, about: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What is kept; computed first if nothing is."""
        if (result := self.read(about)) is None:
            self.write(about, compute())
            result = self.read(about)  # as it will be found again
        return result

    def _path(self, about: Mapping[str, Any]) -> Path:
        return self.folder / f"{key_of(about)}.json"
