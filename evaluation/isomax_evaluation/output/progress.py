"""Progress bars, on the error stream so that results can be piped; lines where it is no
terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(enabled: bool = True) -> Progress:
    """Bars with counts and the time that remains."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not enabled,
    )


def tell(progress: Progress, text: str) -> None:
    """A line that stays; of several processes the first one tells it."""
    if not progress.disable:  # names may have brackets, which are no markup
        progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


def warn(progress: Progress, text: str) -> None:
    """The same of something that may be wrong."""
    tell(progress, f"warning: {text}")


def say(progress: Progress, text: str) -> None:
    """A line for a log, where there is no terminal for a bar to move on."""
    if not progress.console.is_terminal:
        tell(progress, text)


@contextmanager
def shown(
    progress: Progress, description: str, total: int | None = None
) -> Iterator[Callable[..., None]]:
    """Show a task while it is done; gives a function to call with the number of steps done, and
    with what is done next if that has a name."""
    task = progress.add_task(description, total=total)
    say(progress, description)

    def advance(done: int, doing: str | None = None) -> None:
        progress.update(task, advance=done, description=doing)

    try:
        yield advance
    finally:
        progress.remove_task(task)
