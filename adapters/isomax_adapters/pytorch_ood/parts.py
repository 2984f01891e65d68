"""The parts of a model that detectors are wired to."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn

from isomax.heads import DistanceHead
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.timm.attaching import classifier_names, head_of

STAGES = 4  #: how many of the last stages detectors of several layers look at


class Parts:
    """A model taken apart: encoder, feature maps, stages, classifier, weights.

    Whatever the architecture, the features are what goes into the layer that gives the logits
    (the first of them in a model with several), so that ``classifier(encoder(x))`` are the logits
    of most models. Feature maps and stages are those of timm models; other networks have none.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: str | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """
        :param model: a timm model with a linear classifier or one of our heads; or any network
            whose classifier is named
        :param classifier: name of the layer that gives the logits, such as ``fc`` or ``head.fc``:
            linear, a 1x1 convolution or one of our heads; a timm model's own is found
        :param std: of the channels, by which images are divided before the model gets them; if not
            given, that of a timm model's preprocessing (``timm.data.resolve_model_data_config``),
            and 1 of any other network
        :raises InputError: if the model has no classifier, or not of this name
        """
        if classifier is None and not hasattr(model, "get_classifier"):
            linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
            raise InputError(
                f"{type(model).__name__} is no timm model, so it does not say which layer gives "
                f"its logits; name it, as in Parts(model, classifier={(linear or ['fc'])[-1]!r})"
            )
        names = classifier_names(model) if classifier is None else [classifier]
        self.model: Any = model
        if std is None:
            is_timm = hasattr(model, "pretrained_cfg")
            std = resolve_model_data_config(model)["std"] if is_timm else [1.0] * self.channels
        self.std = tuple(std)
        modules = dict(model.named_modules())
        if missing := [name for name in names if name not in modules]:
            raise InputError(
                f"{type(model).__name__} has no layer {missing[0]!r}; its layers include "
                f"{', '.join(list(dict(model.named_children()))[-5:])}"
            )
        self.classifiers: list[Any] = [modules[name] for name in names]
        for layer in self.classifiers:
            if not isinstance(layer, (nn.Linear, nn.Conv2d, DistanceHead)):
                raise InputError(
                    f"the layer {names[0]!r} is {type(layer).__name__}; expected nn.Linear, a 1x1 "
                    "nn.Conv2d or a head of isomax"
                )

    @property
    def classifier(self) -> Any:
        """The layer that gives the logits: linear, a 1x1 convolution or one of our heads."""
        return self.classifiers[0]

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        layer = self.classifier
        return int(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)

    def keep_classes(self, classes: Sequence[int]) -> None:
        """Make it a model of some of its classes, in this order, in place: the classifier's other
        rows (a distance head's other prototypes) are dropped, and their logits with them.

        :param classes: places among the model's classes
        """
        chosen = list(classes)
        if chosen == list(range(self.num_classes)):
            return
        for layer in self.classifiers:
            for name, parameter in list(layer.named_parameters(recurse=False)):
                if name in ("weight", "bias", "prototypes") and parameter.dim():
                    kept = parameter.detach()[chosen].clone()
                    setattr(layer, name, nn.Parameter(kept, parameter.requires_grad))
            for width in ("out_features", "out_channels", "num_classes"):
                if width in vars(layer):
                    setattr(layer, width, len(chosen))
        if hasattr(self.model, "num_classes"):
            self.model.num_classes = len(chosen)

    @property
    def head(self) -> str:
        """``softmax``, or a name in ``isomax.heads.HEADS``."""
        return head_of(self.model)

    @property
    def linear(self) -> bool:
        """Whether the logits are weights times features plus bias."""
        return len(self.classifiers) == 1 and not isinstance(self.classifier, DistanceHead)

    @property
    def weight(self) -> Tensor:
        """Weights of a linear classifier, :math:`C \\times D`."""
        weight: Tensor = self.classifier.weight.detach()
        return weight.flatten(1)

    @property
    def bias(self) -> Tensor:
        """Bias of a linear classifier, :math:`C`; zeros if it has none."""
        if self.classifier.bias is None:
            return torch.zeros(len(self.weight), device=self.weight.device)
        bias: Tensor = self.classifier.bias.detach()
        return bias

    def linear_layer(self) -> nn.Linear:
        """A linear classifier as ``nn.Linear``, also where the model has a 1x1 convolution."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0], device=self.weight.device)
        layer.load_state_dict({"weight": self.weight, "bias": self.bias})
        return layer

    @property
    def channels(self) -> int:
        """Of the images that the model takes."""
        return int(get_model_input_config(self.model)["input_size"][0])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def classify(self, features: Tensor) -> Tensor:
        """Logits of pooled features, :math:`B \\times D`."""
        if isinstance(self.classifier, nn.Conv2d):
            features = features[:, :, None, None]
        logits: Tensor = self.classifier(features)
        return logits.flatten(1)

    @cached_property
    def classifies_features(self) -> bool:
        """Whether the logits are the classifier's of the features, and nothing else.

        Found by running one black image.
        """
        if len(self.classifiers) > 1:
            return False
        with torch.no_grad():
            logits, features = self._run_once(self.logits_and_features)
            logits, again = logits.flatten(1), self.classify(features)
            return bool((logits - again).abs().max() <= 1e-5 * logits.abs().max())

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one forward pass.

        :return: logits :math:`B \\times C` and pooled features :math:`B \\times D`
        """
        return self._with_features(self.model, x)

    def logits_features_and_maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All three from one forward pass, of a model that has feature maps.

        :return: logits :math:`B \\times C`, pooled features :math:`B \\times D` and feature maps
            :math:`B \\times C' \\times H \\times W`
        """
        maps = self.feature_maps(x)
        logits, features = self._with_features(self.classify_maps, maps)
        return logits, features, maps

    def _with_features(self, function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = self.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            logits = function(x)
        finally:
            hook.remove()
        features = seen[0]
        if features.dim() > 2:  # a convolution as classifier keeps 1x1 maps
            features = features.flatten(2).mean(dim=2)
        return logits, features

    def encode(self, x: Tensor) -> Tensor:
        """Pooled features, :math:`B \\times D`."""
        return self.logits_and_features(x)[1]

    @cached_property
    def maps_layout(self) -> str | None:
        """``NCHW`` or ``NHWC`` if the model's last features are maps; ``None`` if they are tokens.

        Found by running one black image.
        """
        if not hasattr(self.model, "forward_features") or not hasattr(self.model, "forward_head"):
            return None
        with torch.no_grad():
            features = self._run_once(self.model.forward_features)
        if not isinstance(features, Tensor) or features.dim() != 4:
            return None
        width = self.model.num_features
        if features.shape[1] == width:
            return "NCHW"
        return "NHWC" if features.shape[3] == width else None

    def feature_maps(self, x: Tensor) -> Tensor:
        """The last feature maps, before pooling, :math:`B \\times C' \\times H \\times W`."""
        maps: Tensor = self.model.forward_features(x)
        maps = maps.permute(0, 3, 1, 2) if self.maps_layout == "NHWC" else maps
        return maps.contiguous()  # some detectors take views of them

    def classify_maps(self, maps: Tensor) -> Tensor:
        """Logits of feature maps."""
        if self.maps_layout == "NHWC":
            maps = maps.permute(0, 2, 3, 1)
        logits: Tensor = self.model.forward_head(maps)
        return logits

    @cached_property
    def stages_count(self) -> int:
        """How many of the last stages :meth:`stages` gives; 0 if timm cannot take them out."""
        if not hasattr(self.model, "forward_intermediates"):
            return 0
        known = len(getattr(self.model, "feature_info", []))
        return min(STAGES, known)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Outputs of the last stages (blocks of a transformer) as maps
        :math:`B \\times C_l \\times H_l \\times W_l`, first to last."""
        maps: list[Tensor] = self.model.forward_intermediates(
            x, indices=self.stages_count, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    @cached_property
    def stage_modules(self) -> list[nn.Module]:
        """The modules whose outputs are the last stages; none if some stage is no module."""
        info = list(getattr(self.model, "feature_info", []))[-STAGES:]
        modules = dict(self.model.named_modules())
        names = [stage["module"] for stage in info]
        return [modules[name] for name in names] if all(n in modules for n in names) else []

    def _run_once(self, function: Any) -> Any:
        like = next(self.model.parameters())
        size = get_model_input_config(self.model)["input_size"]
        training = self.model.training
        self.model.eval()
        try:
            return function(torch.zeros(1, *size, device=like.device, dtype=like.dtype))
        finally:
            self.model.train(training)
