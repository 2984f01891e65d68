"""The one base of errors that are for the user; whatever else is raised is a defect of ours."""


class InputError(ValueError):
    """Something given cannot be used; the message names it and the way out."""
