"""timm's registry: ``isomax_<arch>`` and its siblings for every architecture with a classifier."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import timm
from timm.models import _registry, load_pretrained, load_state_dict
from timm.models._builder import _resolve_pretrained_source, resolve_pretrained_cfg
from torch import Tensor, nn

from isomax.heads import HEADS, DistanceHead
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.timm.attaching import attach, classifier_names, name_model, prefixes
from isomax_adapters.timm.checkpoints import converted, fits, within
from isomax_adapters.timm.statistics import hold_statistics
from isomax_adapters.timm.stem import use_small_image_stem

_MODULE = "isomax"  # timm.list_models(module="isomax") lists ours
_SCHEMES = ("hf-hub", "hf_hub", "local-dir")  # what timm reads before a colon


class SourceError(InputError):
    """A model that cannot be had from where it was looked for; says what may be given."""


def register_models() -> None:
    """Register a name for every kind of head and timm architecture; done by importing the package.

    ``isomax_<arch>``, ``isomaxplus_<arch>`` and ``dismax_<arch>`` have the head in drop-in mode
    (``drop_in=False`` to change that); ``softmax_<arch>`` is the architecture itself. All of them
    take ``small_images=True`` (see :func:`~isomax_adapters.timm.stem.use_small_image_stem`) and
    ``freeze_bn=True`` (see :func:`~isomax_adapters.timm.statistics.hold_statistics`). With
    ``pretrained=True`` they take the backbone's weights from where ``<arch>`` takes them, tags
    included (``isomax_resnet18.a1_in1k``), and the head's as well where a given file has them.
    """
    for head, prefix in prefixes().items():
        _register(head, prefix)


def register_head(head: type[DistanceHead]) -> None:
    """Have a head of one's own attached by its name, and registered with timm by its prefix, as
    ours are. Its module has to be imported, and this be called, wherever such models are made or
    loaded; for ``isomax_evaluation.train`` before that is imported.

    :raises InputError: if its name or prefix is that of other models
    """
    if HEADS.get(head.name) is head:
        return
    known = _registry._model_entrypoints
    if head.name in prefixes() or any(name.startswith(head.prefix) for name in known):
        raise InputError(
            f"there are models of name {head.name!r} or prefix {head.prefix!r} already; give "
            f"{head.__name__} others"
        )
    HEADS[head.name] = head
    _register(head.name, head.prefix)


def _register(head: str, prefix: str) -> None:
    for architecture in [name for name in _registry._model_entrypoints if _has_classifier(name)]:
        name = prefix + architecture
        # register_model() searches a growing list for each name: half a second for them all
        _registry._model_entrypoints[name] = _Entrypoint(architecture, head, name)
        _registry._model_to_module[name] = _MODULE
        _registry._module_to_models[_MODULE].add(name)
        if architecture in _registry._model_default_cfgs:
            _register_pretrained(architecture, prefix)


def _register_pretrained(architecture: str, prefix: str) -> None:
    tagged = _registry._model_with_tags[architecture]
    _registry._model_default_cfgs[prefix + architecture] = _registry._model_default_cfgs[
        architecture
    ]
    _registry._model_with_tags[prefix + architecture] = [prefix + name for name in tagged]
    for name in {architecture, *tagged}:
        _registry._model_pretrained_cfgs[prefix + name] = replace(
            _registry._model_pretrained_cfgs[name], architecture=prefix + architecture
        )
        if name in _registry._model_has_pretrained:
            _registry._model_has_pretrained.add(prefix + name)


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` whose error for an unknown name lists the nearest known ones.

    :raises SourceError: if there is no such model, or its weights cannot be had
    """
    check_name(name)
    try:
        return timm.create_model(name, **kwargs)
    except (OSError, RuntimeError, LookupError) as error:  # of the hub, or no weights
        if ":" not in name and not kwargs.get("pretrained"):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            f"no pretrained weights of {name}: {lines[0].rstrip('.')}; offline, give a model "
            "folder or ARCHITECTURE@FILE, or train with --weights FILE"
        ) from error


def check_name(name: str) -> None:
    """Refuse a name that timm does not have.

    :raises SourceError: listing the nearest known names
    """
    scheme, colon, _ = name.partition(":")
    if colon:
        if scheme not in _SCHEMES:
            raise SourceError(f"{name} is no model; expected hf-hub:REPOSITORY or local-dir:FOLDER")
        return
    architecture, _, tag = name.partition(".")
    if timm.is_model(name):
        tagged = _registry._model_with_tags.get(architecture, [])
        if tag and name not in tagged:
            tags = ", ".join(one.partition(".")[2] for one in tagged) or "none"
            raise SourceError(f"timm has no weights {tag!r} of {architecture}; it has {tags}")
        return
    known = [model for model in timm.list_models() if not is_ours(model)]
    near = difflib.get_close_matches(architecture, known, n=3, cutoff=0.4)
    raise SourceError(
        f"timm has no model {name!r}"
        + (", and there is no such folder" if "/" in name or "\\" in name else "")
        + (f"; did you mean {', '.join(near)}?" if near else ";")
        + " timm.list_models() names them all"
    )


def built_for_one_size(name: str) -> bool:
    """Whether an architecture takes ``img_size`` for images of another size than its own.

    :raises SourceError: if there is no such model
    """
    check_name(name)
    cfg = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    return cfg is not None and bool(cfg.fixed_input_size)


def is_ours(name: str) -> bool:
    """Whether a model name is one that this package registers."""
    return name.startswith(tuple(prefixes().values()))


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
        freeze_bn: bool = False,
        features_only: bool = False,
        **kwargs: Any,
    ) -> nn.Module:
        model = self._create(pretrained, drop_in, small_images, features_only, kwargs)
        return hold_statistics(model) if freeze_bn else model

    def _create(
        self,
        pretrained: bool,
        drop_in: bool,
        small_images: bool,
        features_only: bool,
        kwargs: dict[str, Any],
    ) -> nn.Module:
        backbone = _registry.model_entrypoint(self.architecture)
        own = self._own_weights(kwargs) if pretrained else None
        if features_only:
            if own is not None:
                if small_images:
                    raise InputError(
                        f"timm takes the features of {self.architecture} apart before its stem is "
                        "replaced by that of small_images; use the model's forward_intermediates()"
                    )
                # any name has timm pass over the tensors of a head, which features do not have
                overlay = {**(kwargs.pop("pretrained_cfg_overlay", None) or {}), "classifier": "."}
                kwargs["pretrained_cfg_overlay"] = overlay
            model = backbone(pretrained=pretrained, features_only=True, **kwargs)
            if small_images:
                use_small_image_stem(model)
            name_model(model, self.__name__)
            return model
        model = backbone(pretrained=pretrained and own is None, **kwargs)
        if small_images:
            use_small_image_stem(model)
        if self.head == "softmax":
            name_model(model, self.__name__)
        else:
            attach(model, self.head, num_classes=model.num_classes, drop_in=drop_in)
        if own is not None:
            load_pretrained(
                model,
                # labels of a background class are no longer in weights of ours
                pretrained_cfg={**model.pretrained_cfg, **own, "label_offset": 0},
                num_classes=model.num_classes,
                in_chans=kwargs.get("in_chans", 3),
                filter_fn=_fit,
                cache_dir=kwargs.get("cache_dir"),
            )
        return model

    def _own_weights(self, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Where weights of this very kind of model are, to load once it has its head; ``None`` if
        what is given are the architecture's, which timm loads into the architecture."""
        cfg = resolve_pretrained_cfg(
            self.architecture, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
        )
        if cfg.source in ("local-dir", "hf-hub"):  # a model folder, or one pushed to the hub
            return {}
        kind, place = _resolve_pretrained_source(cfg.to_dict())
        if cfg.custom_load or kind not in ("file", "state_dict"):
            return None
        tensors = load_state_dict(place) if kind == "file" else place
        return {"state_dict": tensors} if _has_distance_head(tensors) else None


def _has_distance_head(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.endswith(".prototypes") for name in tensors)


def _fit(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Without the heads if they are of another number of classes, and for the model's input size,
    as timm does with weights of linear models."""
    cfg = model.pretrained_cfg
    if cfg.get("classifier") is not None and model.num_classes != cfg["num_classes"]:
        heads = classifier_names(model)
        tensors = {name: tensor for name, tensor in tensors.items() if not within(name, heads)}
    return tensors if fits(tensors, model.state_dict()) else converted(tensors, model)
