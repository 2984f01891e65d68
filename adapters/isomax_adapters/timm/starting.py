"""The heads of a pretrained model, started on its own features."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from isomax.starting import Head, start_head
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.timm.attaching import TimmModel, classifier_names


def start_heads(
    model: TimmModel,
    loader: Iterable[tuple[Tensor, Tensor]],
    start: Callable[[Head, Tensor, Tensor], object] = start_head,
) -> TimmModel:
    """Set the classifiers of a pretrained model to where its training is best begun, in place.

    .. code-block:: python

        model = attach(timm.create_model("resnet50", pretrained=True, num_classes=10), "isomax+")
        start_heads(model, loader)

    The model runs once over the images, in evaluation mode, where it is; its features stay in
    memory until the end. A classifier that it does not run then, such as an auxiliary one, is left
    as it is.

    :param model: a timm model whose classifiers are linear or heads of isomax
    :param loader: yields (images, labels), best without augmentation; images with labels below 0
        are left out
    :param start: of a head, features :math:`N \\times D` and labels :math:`N`;
        :func:`isomax.start_at_means` for class means whatever the head
    :return: the same model, its modules in the mode that each was in
    :raises InputError: as :func:`isomax.start_at_means`, or if the loader is empty
    :raises TypeError: if a classifier is another layer
    """
    layers = {name: model.get_submodule(name) for name in classifier_names(model)}
    features: dict[str, list[Tensor]] = {name: [] for name in layers}
    labels: list[Tensor] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, given: features[name].append(_pooled(given[0]).cpu())

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            for images, targets in loader:
                model(images.to(device))
                labels.append(targets.cpu())
    finally:
        for module, training in modes:  # some may be frozen
            module.training = training
        for hook in hooks:
            hook.remove()
    if not labels:
        raise InputError("the loader gives no images to start the heads on")
    for name, layer in layers.items():
        if features[name]:
            start(layer, torch.cat(features[name]), torch.cat(labels))
    return model


def _pooled(features: Tensor) -> Tensor:
    """Means over the pixels of maps, or over tokens, where a classifier is given these."""
    if features.dim() == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.dim() == 3 else features
