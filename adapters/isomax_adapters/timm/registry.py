"""timm's registry: ``isomax_<arch>`` and its siblings for every architecture with a classifier."""

import difflib
from dataclasses import dataclass
from typing import Any

import timm
from timm.models import _registry, load_pretrained
from torch import Tensor, nn

from isomax_adapters.timm.attaching import PREFIXES, attach
from isomax_adapters.timm.stem import use_small_image_stem

_MODULE = "isomax"  # timm.list_models(module="isomax") lists ours


def register_models() -> None:
    """Register four names for every timm architecture; done by importing the package.

    ``isomax_<arch>``, ``isomaxplus_<arch>`` and ``dismax_<arch>`` have the head in drop-in mode
    (``drop_in=False`` to change that); ``softmax_<arch>`` is the architecture itself. All four
    take ``small_images=True`` (see :func:`~isomax_adapters.timm.stem.use_small_image_stem`). With
    ``pretrained=True`` they take the backbone's weights from where ``<arch>`` takes them, tags
    included (``isomax_resnet18.a1_in1k``).
    """
    for architecture in [name for name in _registry._model_entrypoints if _has_classifier(name)]:
        for head, prefix in PREFIXES.items():
            name = prefix + architecture
            # register_model() searches a growing list for each name: half a second for them all
            _registry._model_entrypoints[name] = _Entrypoint(architecture, head, name)
            _registry._model_to_module[name] = _MODULE
            _registry._module_to_models[_MODULE].add(name)


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` whose error for an unknown name lists the nearest known ones.

    :raises ValueError: if there is no such model, or no weights for it
    """
    if ":" not in name and not timm.is_model(name):
        known = [model for model in timm.list_models() if not is_ours(model)]
        near = difflib.get_close_matches(name.partition(".")[0], known, n=3, cutoff=0.4)
        raise ValueError(
            f"timm has no model {name!r}"
            + (f"; did you mean {', '.join(near)}?" if near else "")
            + " timm.list_models() names them all"
        )
    return timm.create_model(name, **kwargs)


def is_ours(name: str) -> bool:
    """Whether a model name is one that this package registers."""
    return name.startswith(tuple(PREFIXES.values()))


def _has_classifier(name: str) -> bool:
    # timm names its encoders for language models so; attach() refuses them anyway
    deprecated = name in _registry._deprecated_models
    return not (name.endswith("_enc") or is_ours(name) or deprecated)


@dataclass(frozen=True)
class _Entrypoint:
    architecture: str
    head: str
    __name__: str

    def __call__(
        self,
        pretrained: bool = False,
        drop_in: bool = True,
        small_images: bool = False,
        **kwargs: Any,
    ) -> nn.Module:
        source = kwargs.get("pretrained_cfg")
        # weights of this very kind of model, from a model folder or one pushed to the hub
        load_here = pretrained and isinstance(source, dict) and "source" in source
        backbone = _registry.model_entrypoint(self.architecture)
        model = backbone(pretrained=pretrained and not load_here, **kwargs)
        if small_images:
            use_small_image_stem(model)
        if self.head == "softmax":
            model.pretrained_cfg = dict(model.pretrained_cfg, architecture=self.__name__)
        else:
            attach(model, self.head, drop_in=drop_in)
        if load_here:
            load_pretrained(
                model,
                num_classes=model.num_classes,
                in_chans=kwargs.get("in_chans", 3),
                filter_fn=_keep_fitting,
            )
        return model


def _keep_fitting(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Leave out the heads of another number of classes, as timm does with linear classifiers."""
    own = model.state_dict()
    return {
        name: tensor
        for name, tensor in state_dict.items()
        if not name.endswith("prototypes") or tensor.shape == own[name].shape
    }
