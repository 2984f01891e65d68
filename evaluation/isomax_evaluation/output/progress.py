"""What long work says while it goes on: tasks and lines, wherever these are shown."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Where work reports to. The command shows bars (``isomax_evaluation.cli``)."""

    #: whether tasks are shown as they go on, so that a line for each is not needed
    moves: bool

    def tell(self, text: str) -> None:
        """A line that stays."""

    def begin(self, what: str, total: int | None) -> Any:
        """A task of so many steps, if that is known; gives what the other two take."""

    def step(self, task: Any, done: int, what: str | None) -> None:
        """So many steps of it are done; and what it is called from now on, if that changes."""

    def end(self, task: Any) -> None:
        """It is over, whether it was done or not."""


class Lines:
    """Lines on the error stream, so that results can be piped."""

    moves = False

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def begin(self, what: str, total: int | None) -> Any:
        return None

    def step(self, task: Any, done: int, what: str | None) -> None:
        pass

    def end(self, task: Any) -> None:
        pass


LINES = Lines()


class Silent(Lines):
    """Nothing, as of all processes but the first one."""

    def tell(self, text: str) -> None:
        pass


def tell(progress: Progress, text: str) -> None:
    """A line that stays."""
    progress.tell(text)


def warn(progress: Progress, text: str) -> None:
    """The same of something that may be wrong."""
    progress.tell(f"warning: {text}")


def say(progress: Progress, text: str) -> None:
    """A line for a log, where nothing moves."""
    if not progress.moves:
        progress.tell(text)


@contextmanager
def shown(progress: Progress, what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a task while it is done; gives a function to call with the number of steps done, and
    with what is done next if that has a name."""
    task = progress.begin(what, total)
    say(progress, what)

    def advance(done: int, doing: str | None = None) -> None:
        progress.step(task, done, doing)

    try:
        yield advance
    finally:
        progress.end(task)
