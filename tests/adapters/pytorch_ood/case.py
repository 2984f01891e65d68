"""What a reference is given: a trained model in float64 and its images."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray
BATCH = 50  # images at a time


@dataclass
class Case:
    """A trained model of timm, what it was trained on, and test images."""

    model: nn.Module  #: float64, in evaluation mode
    train: Tensor  #: images, float64
    labels: Array
    test: Tensor  #: images, float64
    std: tuple[float, ...]  #: of the channels, by which the images were divided

    def outputs(self, images: Tensor) -> tuple[Array, Array, Array]:
        """Logits, pooled features and last feature maps."""
        found = []
        with torch.no_grad():
            for x in images.split(BATCH):
                maps = self.model.forward_features(x)
                features = self.model.forward_head(maps, pre_logits=True)
                found.append((self.model(x), features, maps))
        logits, features, maps = (torch.cat(part).numpy() for part in zip(*found, strict=True))
        return logits, features, maps

    @cached_property
    def of_train(self) -> tuple[Array, Array, Array]:
        return self.outputs(self.train)

    @cached_property
    def of_test(self) -> tuple[Array, Array, Array]:
        return self.outputs(self.test)

    @property
    def logits(self) -> tuple[Array, Array]:
        return self.of_train[0], self.of_test[0]

    @property
    def features(self) -> tuple[Array, Array]:
        return self.of_train[1], self.of_test[1]

    @property
    def maps(self) -> tuple[Array, Array]:
        return self.of_train[2], self.of_test[2]

    @property
    def weight(self) -> Array:
        return self.model.get_classifier().weight.detach().numpy()

    @property
    def bias(self) -> Array:
        return self.model.get_classifier().bias.detach().numpy()

    def classify(self, features: Array) -> Array:
        with torch.no_grad():
            return self.model.get_classifier()(torch.from_numpy(features)).numpy()

    def stages(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and the outputs of the last four stages, with their graph."""
        modules = dict(self.model.named_modules())
        seen: list[Tensor] = []
        hooks = [
            modules[stage["module"]].register_forward_hook(lambda *call: seen.append(call[2]))
            for stage in self.model.feature_info[-4:]
        ]
        logits = self.model(images)
        for hook in hooks:
            hook.remove()
        return logits, seen
