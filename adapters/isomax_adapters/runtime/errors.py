"""The one base of errors that are for the user; whatever else is raised is a defect of ours."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something given cannot be used; the message names it and the way out."""


@contextmanager
def input_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Around one call that is handed what a user gave: a ``ValueError`` is an :class:`InputError`.

    :param kinds: other errors that are one, too
    """
    caught: tuple[type[Exception], ...] = (ValueError, *kinds)
    try:
        yield
    except InputError:
        raise
    except caught as error:
        raise InputError(" ".join(str(error).split()) or type(error).__name__) from error
