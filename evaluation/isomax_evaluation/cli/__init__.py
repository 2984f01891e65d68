"""The ``isomax`` command: parses and prints."""

from isomax_evaluation.cli.app import app, main

__all__ = ["app", "main"]
