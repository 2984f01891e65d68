"""Trained models to compare detectors with their references on."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import timm
import timm.data
import torch
from PIL import Image
from pytorch_ood.api import Detector, FeatureMapsDetector, FeaturesDetector, LogitsDetector
from safetensors.torch import load_file
from torch import Tensor, nn

import isomax_adapters.timm  # noqa: F401
from isomax_adapters.pytorch_ood import Parts, detectors_for

from .case import BATCH, Case
from .references import REFERENCES, difference


def small_case(name: str, drop_rate: float = 0.0) -> tuple[nn.Module, Case]:
    """A small model of four classes, which differ in colour; a tenth of the labels are wrong."""
    torch.manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 4
        colours = torch.tensor([[-2, -1, 2], [-0.7, 1, 0.7], [0.7, -1, -0.7], [2, 1, -2.0]])
        brightness = 0.8 * torch.randn(count, 1, 1, 1)
        noise = 0.7 * torch.randn(count, 3, 48, 48)
        return colours[labels][:, :, None, None] + brightness + noise, labels

    images, labels = draw(240)
    labels = torch.where(torch.rand(240) < 0.1, torch.randint(4, (240,)), labels)
    model = timm.create_model(name, num_classes=4, drop_rate=drop_rate)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(30):
        some = torch.randperm(240)[:80]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[some]), labels[some]).backward()
        optimizer.step()
    with torch.no_grad():
        for _ in range(10):  # the running averages of batch norm catch up
            model(images)
    known, _ = draw(30)
    unknown = torch.cat([torch.randn(15, 3, 48, 48), 4 * torch.rand(15, 3, 48, 48) - 2])
    return _case(model.eval(), images, labels, torch.cat([known, unknown]))


def efficientnet_case(
    weights: Path, folder: Path, per_class: int, size: int
) -> tuple[nn.Module, Case]:
    """EfficientNet-Lite0 with a least-squares classifier of the classes of an image folder."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(weights))
    config = timm.data.resolve_model_data_config(model, {"img_size": size})
    transform = timm.data.create_transform(**config)

    def read(path: Path) -> Tensor:
        return transform(Image.open(path).convert("RGB"))

    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    paths = [
        sorted(p for p in f.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for f in folders
    ]
    images = torch.stack([read(p) for of_class in paths for p in of_class[:per_class]])
    labels = torch.tensor([k for k, c in enumerate(paths) for _ in c[:per_class]])
    known = torch.stack([read(p) for c in paths for p in c[per_class : per_class + 5]])
    unknown = torch.randn(100, *known.shape[1:])
    with torch.no_grad():
        features = torch.cat([Parts(model).encode(x) for x in images.split(BATCH)]).double()
        padded = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        wanted = 10 * nn.functional.one_hot(labels).double()
        gram = padded.T @ padded + 10 * torch.eye(padded.shape[1])
        solution = torch.linalg.solve(gram, padded.T @ wanted).float()
        model.reset_classifier(len(folders))
        model.classifier.weight.copy_(solution[:-1].T)
        model.classifier.bias.copy_(solution[-1])
    return _case(model.eval(), images, labels, torch.cat([known, unknown]))


def differences(model: nn.Module, case: Case, names: Iterable[str]) -> Iterator[tuple[str, float]]:
    """The largest difference of each detector that can work on the model from its reference, one
    after the other."""
    parts = Parts(model)
    train, labels, test = case.train.float(), torch.from_numpy(case.labels), case.test.float()
    has_maps = parts.maps_layout is not None
    run = parts.logits_features_and_maps if has_maps else parts.logits_and_features
    with torch.no_grad():
        of_train, of_test = (
            [torch.cat(part) for part in zip(*map(run, x.split(BATCH)), strict=True)]
            for x in (train, test)
        )

    def scores(detector: Detector) -> Tensor:
        kinds = (LogitsDetector, FeaturesDetector, FeatureMapsDetector)
        for place, kind in enumerate(kinds):
            if isinstance(detector, kind):
                what = ("logits", "features", "feature_maps")[place]
                getattr(detector, f"fit_{what}")(of_train[place], labels)
                return getattr(detector, f"predict_{what}")(of_test[place])
        detector.fit(list(zip(train.split(BATCH), labels.split(BATCH), strict=True)))
        return torch.cat([detector.predict(x) for x in test.split(BATCH)])

    for name, detector in detectors_for(parts, names).items():
        torch.manual_seed(0)  # some draw
        ours = scores(detector).detach().double().numpy()
        torch.manual_seed(0)
        yield name, difference(ours, np.asarray(REFERENCES[name](case)))


def _case(model: nn.Module, train: Tensor, labels: Tensor, test: Tensor) -> tuple[nn.Module, Case]:
    std = timm.data.resolve_model_data_config(model)["std"]
    exact = copy.deepcopy(model).double()
    return model, Case(exact, train.double(), labels.numpy(), test.double(), std)
