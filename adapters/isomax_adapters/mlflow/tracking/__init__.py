"""Runs of MLflow that mirror an output folder, while it is being filled or later."""
