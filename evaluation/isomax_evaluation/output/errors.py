"""What a user can set right, and what a table says of the rest."""

from collections.abc import Sequence

from isomax_adapters.runtime.errors import InputError, input_errors

__all__ = ["InputError", "first_few", "input_errors", "one_line"]


def one_line(error: BaseException) -> str:
    """Kind and message of an error, as a cell of a table."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return text.encode("utf-8", "backslashreplace").decode()  # it may name a file


def first_few(items: Sequence[str], most: int) -> str:
    """Some of many, and how many more there are."""
    more = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
