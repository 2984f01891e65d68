"""What goes wrong between an output folder and MLflow, in one line and without passwords."""

import contextlib
import re
import time
from collections.abc import Iterator

from isomax_adapters.runtime.errors import InputError

HIDDEN = "***"
_GIVE_UP = 20.0  # seconds of failing: a server that refuses takes less, one that hangs more


class TrackingError(InputError):
    """The tracking server cannot be used; the results are safe in the output folder."""

    def __init__(self, reason: str, way_out: str) -> None:
        super().__init__(f"{reason}; {way_out}")
        self.reason = reason


class Failures:
    """What went wrong; the rest is sent all the same."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.seconds = 0.0

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            self.errors.append(error)
            self.seconds += time.monotonic() - started
            if self.seconds > _GIVE_UP:
                raise

    def __str__(self) -> str:
        reasons = list(dict.fromkeys(map(reason_of, self.errors)))
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        return "; ".join(reasons[:3]) + more


def shown(text: str) -> str:
    """A URI, or a text with URIs, without passwords."""
    return re.sub(r"(://[^\s/:@]*):\S*@", rf"\1:{HIDDEN}@", text)


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    deepest = error
    while cause := deepest.__cause__ or deepest.__context__:
        deepest = cause
    if isinstance(deepest, OSError) and deepest.strerror:  # below layers of wrapping
        file = f"{deepest.filename}: " if deepest.filename else ""
        return f"{file}{deepest.strerror}"
    if isinstance(deepest, TimeoutError):
        return "timed out"
    # without the page that a server which knows no such address answers with
    lines = str(error).partition(" Response body:")[0].strip().splitlines()
    return shown(lines[0].rstrip(".")) if lines else type(error).__name__
