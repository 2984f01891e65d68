"""Labelled image files: which there are, in folders and tables, and what each is of.

Needs numpy alone, so that folders are scored where there is no PyTorch.
"""
