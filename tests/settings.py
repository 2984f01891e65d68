"""Arguments by the names of single settings, as the objects that train and compare take."""

from dataclasses import fields

from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.training.source import Source


def grouped(arguments):
    """``{"image_size": 32, "workers": 0}`` as ``preprocessing`` and ``reading``; others stay."""
    rest = dict(arguments)
    for name, kind in (("model", Source), ("preprocessing", Preprocessing), ("reading", Reading)):
        given = {f.name: rest.pop(f.name) for f in fields(kind) if f.name in rest}
        if given:
            rest[name] = kind(**given)
    return rest
