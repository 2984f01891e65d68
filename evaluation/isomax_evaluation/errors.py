"""What a user can set right, and what a table says of the rest."""


class InputError(ValueError):
    """Something given cannot be used; the message names it and the way out."""


def one_line(error: BaseException) -> str:
    """Kind and message of an error, as a cell of a table."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
