"""Settings as data: what each is, what it may be, and how it is read from a text.

A frozen dataclass whose fields are made by :func:`setting` becomes options of a command, each with
the field's help, and is checked, by what the fields say.
"""

from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import Any

from isomax_evaluation.output.errors import InputError


def setting(
    default: Any,
    help: str,
    *allowed: Any,
    flags: Sequence[str] = (),
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A field of such a class.

    :param allowed: an interval such as ``(0, 1]``, or the values that there are; none for anything
    :param flags: of the command line, if not the name with hyphens
    :param parse: makes the value of a text, where the command line has none of its own for it;
        raises a ``ValueError`` that says what was expected
    """
    metadata = {"help": help, "allowed": allowed, "flags": tuple(flags), "parse": parse}
    return field(default=default, metadata=metadata)


def check_settings(settings: Any) -> None:
    """Refuse values that a field cannot have.

    :param settings: a dataclass of such fields
    :raises InputError: naming the value and what it may be
    """
    for part in fields(settings):
        given, allowed = getattr(settings, part.name), part.metadata["allowed"]
        for value in given if isinstance(given, tuple) else (given,):
            if value is None or not allowed:
                continue
            if not isinstance(allowed[0], str) or allowed[0][0] not in "([":
                if value not in allowed:
                    listed = ", ".join(map(str, allowed[:-1]))
                    raise InputError(
                        f"{part.name} is {value!r}; expected {listed} or {allowed[-1]}"
                    )
            elif not _lies_in(value, allowed[0]):
                raise InputError(f"{part.name} is {value!r}; expected a number in {allowed[0]}")


def numbers(kind: type, most: int | None = None) -> Callable[[str], Any]:
    """A parser of numbers with commas between them, as a tuple.

    :param kind: ``int`` or ``float``
    :param most: how many there are at most
    """

    def parse(text: str) -> Any:
        try:
            found = tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            whole = "whole " if kind is int else ""
            raise ValueError(f"takes {whole}numbers with commas: {error}") from None
        if most is not None and len(found) > most:
            raise ValueError(f"is {text!r}; expected at most {most} numbers")
        return found

    return parse


def _lies_in(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    return above and (value < high if interval[-1] == ")" else value <= high)
