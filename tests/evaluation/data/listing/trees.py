"""Folders of empty files: what they are called is all that a scan sees."""

import os


def make_tree(root, *names, links=()):
    """:param links: (name, target), both below the root"""
    for name in names:
        assert not name.startswith("/"), name
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, target in links:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(root / target, root / name)
    return root


def labelled(listing):
    """The class of each file."""
    names = [listing.class_names[label] for label in listing.labels]
    return dict(zip(listing.names, names, strict=True))
