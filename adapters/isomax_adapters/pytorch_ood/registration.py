"""Our components under pytorch-ood's own names, when asked."""

import pytorch_ood.detector
import pytorch_ood.loss

import isomax
from isomax.posthoc import POST_HOC

_PLACES = {
    pytorch_ood.loss: (isomax.IsoMaxLoss, isomax.FractionalProbabilityLoss),
    pytorch_ood.detector: (
        isomax.EntropicScore,
        isomax.MinimumDistanceScore,
        isomax.MaxMeanLogitEntropyScore,
        isomax.MahalanobisPP,
        isomax.RMDPP,
        *POST_HOC.values(),
    ),
}
_HOMES = {component: component.__module__ for places in _PLACES.values() for component in places}


def register() -> None:
    """Make ``pytorch_ood.loss.IsoMaxLoss``, ``pytorch_ood.detector.EntropicScore`` and the others
    appear as pytorch-ood's own, also to code that goes through its components by their module.
    Calling it again changes nothing; :func:`unregister` takes it back.

    What is pickled in between names pytorch-ood's module: register before reading it back.

    :raises RuntimeError: if pytorch-ood has another component of one of these names
    """
    for module, components in _PLACES.items():
        for component in components:
            found = getattr(module, component.__name__, component)
            if found is not component:
                raise RuntimeError(
                    f"{module.__name__} has a {component.__name__} of its own; use it, or ours "
                    "from isomax"
                )
    for module, components in _PLACES.items():
        for component in components:
            setattr(module, component.__name__, component)
            component.__module__ = module.__name__
            listed = getattr(module, "__all__", None)
            if listed is not None and component.__name__ not in listed:
                listed.append(component.__name__)


def unregister() -> None:
    """Undo :func:`register`; nothing to do if it was not called."""
    for module, components in _PLACES.items():
        for component in components:
            if vars(module).get(component.__name__) is component:
                delattr(module, component.__name__)
                component.__module__ = _HOMES[component]
                listed = getattr(module, "__all__", [])
                if component.__name__ in listed:
                    listed.remove(component.__name__)
