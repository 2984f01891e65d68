"""The parts of a timm model that detectors are wired to."""

from typing import Any

import torch
from torch import Tensor, nn

from isomax.heads import _DistanceHead
from isomax_adapters.timm.attaching import classifier_names, head_of


class Parts:
    """A timm model taken apart: encoder, classifier, weights.

    Whatever the architecture, the features are what goes into the layer that gives the logits
    (the first of them in a model with several), so that ``classifier(encoder(x))`` are the logits
    of most models.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        :param model: a timm model with a linear classifier or one of our heads
        :raises ValueError: if it has no classifier
        """
        if not hasattr(model, "get_classifier"):
            raise ValueError(f"{type(model).__name__} has no classifier that gives its logits")
        self.model = model
        self.classifiers = [model.get_submodule(name) for name in classifier_names(model)]

    @property
    def classifier(self) -> Any:
        """The layer that gives the logits: linear, a 1x1 convolution or one of our heads."""
        return self.classifiers[0]

    @property
    def head(self) -> str:
        """``softmax``, ``isomax``, ``isomax+`` or ``dismax``."""
        return head_of(self.model)

    @property
    def linear(self) -> bool:
        """Whether the logits are weights times features plus bias."""
        return len(self.classifiers) == 1 and not isinstance(self.classifier, _DistanceHead)

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

    def classify(self, features: Tensor) -> Tensor:
        """Logits of pooled features, :math:`B \\times D`."""
        if isinstance(self.classifier, nn.Conv2d):
            features = features[:, :, None, None]
        logits: Tensor = self.classifier(features)
        return logits.flatten(1)

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one forward pass.

        :return: logits :math:`B \\times C` and pooled features :math:`B \\times D`
        """
        seen: list[Tensor] = []
        hook = self.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            logits = self.model(x)
        finally:
            hook.remove()
        features = seen[0]
        if features.dim() > 2:  # a convolution as classifier keeps 1x1 maps
            features = features.flatten(2).mean(dim=2)
        return logits, features

    def encode(self, x: Tensor) -> Tensor:
        """Pooled features, :math:`B \\times D`."""
        return self.logits_and_features(x)[1]
