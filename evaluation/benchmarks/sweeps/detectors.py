"""Which detector works on which family of timm's models: fit and score them, print the table.

``tox -e detectors [-- MODEL...]``: a letter per detector and model: x works, - cannot work there
(the reasons are listed), ! fails.
"""

import sys
import warnings

import timm
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.models import get_model_input_config

import isomax_adapters.timm  # noqa: F401
from isomax_adapters.pytorch_ood import NAMES, Parts, detectors_for, why_not
from isomax_evaluation.detection.fitting import fit
from isomax_evaluation.detection.scoring import score

MODELS = [
    # one small member each of 24 families, convolutional ones first
    *("test_resnet", "test_efficientnet", "test_convnext", "test_byobnet", "test_nfnet"),
    *("test_mambaout", "dla46_c", "regnetx_002", "mobilenetv3_small_050", "ghostnet_050"),
    *("hrnet_w18_small", "starnet_s050", "rexnet_100", "visformer_tiny", "poolformer_s12"),
    *("edgenext_xx_small", "mobilevit_xxs", "efficientvit_b0", "test_vit", "mixer_s32_224"),
    *("deit_tiny_distilled_patch16_224", "levit_128s", "pit_ti_224", "xcit_nano_12_p16_224"),
]
CLASSES = 4


def images_of(size: tuple[int, ...], count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of noise whose brightness is the class."""
    labels = torch.arange(count) % CLASSES
    images = torch.randn(count, *size) + labels[:, None, None, None]
    return list(zip(images.split(14), labels.split(14), strict=True))


def see_every_class(
    parts: Parts, batches: list[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The images of an untrained model with labels that it gets right, of every class: some
    detectors ask for that."""
    model = parts.model
    with torch.no_grad():
        for classifier in parts.classifiers:
            torch.nn.init.normal_(classifier.weight)  # some architectures start at zero
        logits = torch.cat([model(images) for images in batches])
        for classifier in parts.classifiers:
            std = logits.std(dim=0)
            classifier.bias.sub_(logits.mean(dim=0)).div_(std)
            classifier.weight.div_(std.view(-1, *[1] * (classifier.weight.dim() - 1)))
        return [(images, model(images).argmax(dim=1)) for images in batches]


def check(name: str) -> dict[str, str]:
    """What became of each detector on a model: empty if it works."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES).eval()
    size = get_model_input_config(model)["input_size"]
    train, test = images_of(size, 56), images_of(size, 6)
    parts = Parts(model)
    train = see_every_class(parts, [images for images, _ in train])
    found = {reason: f"- {text}" for reason, text in why_not(parts).items()}
    detectors = detectors_for(parts)
    failed = fit(parts, detectors, train)
    fitted = {key: value for key, value in detectors.items() if key not in failed}
    failed |= score(parts, fitted, test)[2]
    return found | {key: f"! {text}" for key, text in failed.items()}


def main() -> int:
    warnings.simplefilter("ignore")
    models = sys.argv[1:] or MODELS
    found = {name: check(name) for name in track(models, console=Console(stderr=True))}
    for number, name in enumerate(found, 1):
        print(f"{number:3} {name}")
    table = Table("detector", *(str(number) for number, _ in enumerate(found, 1)))
    for detector in NAMES:
        table.add_row(detector, *(results.get(detector, "x")[0] for results in found.values()))
    Console(width=32 + 5 * len(found)).print(table)
    for mark, title in (("-", "cannot work"), ("!", "fails")):
        reasons: dict[str, list[str]] = {}
        for name, results in found.items():
            for detector, text in results.items():
                if text[0] == mark:
                    reasons.setdefault(f"{detector}: {text[2:]}", []).append(name)
        print(f"\n{title}:")
        for reason, where in reasons.items():
            print(f"  {reason} ({'all' if len(where) == len(found) else ', '.join(where)})")
    failures = sum(text[0] == "!" for results in found.values() for text in results.values())
    print(f"\n{len(found)} models, {len(NAMES)} detectors, {failures} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
