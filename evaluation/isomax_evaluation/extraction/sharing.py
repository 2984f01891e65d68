"""What a backbone has given with one head serves all other heads on it."""

from pathlib import Path

import torch

from isomax_adapters.pytorch_ood import Parts
from isomax_evaluation.extraction.store import OutputsOnDisk
from isomax_evaluation.output.files import read_json

SAME = ("backbone", "preprocessing", "images", "dtype")
ROWS = 4096


def adopt(kept: OutputsOnDisk, parts: Parts) -> None:
    """Take the features that the same backbone gave for the same images with another head, if they
    are kept beside ``kept``, and give them the logits of this head.

    Nothing happens if the outputs are there, or if the logits are not a function of the features.

    :param kept: the place of the model's outputs
    :param parts: the model, in evaluation mode
    :raises InputError: if what is found is damaged, or the disk is full
    """
    if kept.folder.is_dir() or kept.about.get("backbone") is None:
        return
    found = _of_the_same_backbone(kept)
    if found is None or not parts.classifies_features:
        return
    outputs = found.read()
    assert outputs is not None
    with kept, torch.no_grad():
        for features, labels in zip(
            outputs.features.split(ROWS), outputs.labels.split(ROWS), strict=True
        ):
            kept.add(parts.classify(features.to(parts.device)).float(), features, labels)


def _of_the_same_backbone(kept: OutputsOnDisk) -> OutputsOnDisk | None:
    for path in sorted(Path(kept.folder.parent).glob("[!.]*/about.json")):
        about = read_json(path)
        if all(about.get(key) == kept.about[key] for key in SAME):
            return OutputsOnDisk(path.parent, about, kept.count)
    return None
