"""The error that the command line shows as one line."""


class InputError(ValueError):
    """Something the user gave cannot be used: says which value, what was expected, the way out."""
