"""Attach a head to every architecture of the installed timm; print the count and each exception.

``tox -e sweep``, or ``python tests/adapters/timm/sweep.py [PATTERN...]``. First every architecture
on the meta device: a head must be in the place of every classifier leaf. Then the smallest member
of each of timm's model families on real tensors: forward, backward, logits, reset_classifier, save
and load.
"""

import math
import sys
import tempfile
import traceback

import pytest
import timm
import torch
from rich.progress import track
from timm.models import _registry
from timm.models._input import get_model_input_config
from torch import nn

import isomax_adapters.timm as isomax_timm
from isomax.functional import isomax_distances
from isomax_adapters.timm.attaching import head_modules
from isomax_adapters.timm.registry import is_ours

CLASSES = 7  # no layer of timm's has this width by itself


def classifier_leaves(model: nn.Module, classes: int = CLASSES) -> int:
    """Linear layers and 1x1 convolutions that give the logits, counted without our own code."""
    return sum(
        isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.shape[0] == classes
        for m in model.modules()
    )


def sweep_meta() -> tuple[dict[str, int], dict[str, str], list[str]]:
    """Parameters of each architecture that took a head, failures, encoders without classifier."""
    sizes: dict[str, int] = {}
    failures: dict[str, str] = {}
    encoders = []
    architectures = [name for name in timm.list_models(sys.argv[1:] or "*") if not is_ours(name)]
    for name in track(architectures, description="meta device"):
        try:
            with torch.device("meta"):
                if not timm.is_model(f"isomax_{name}"):
                    model = timm.create_model(name)
                    with pytest.raises(ValueError, match="no classifier"):
                        isomax_timm.attach(model, num_classes=CLASSES)
                    encoders.append(name)
                    continue
                plain = timm.create_model(name, num_classes=CLASSES)
                expected = classifier_leaves(plain)
                assert expected > 0, "no classifier leaf found"
                isomax_timm.attach(plain)
                assert len(head_modules(plain)) == expected, "not every leaf has a head"
                assert classifier_leaves(plain) == 0, "a linear leaf is left"
            sizes[name] = sum(p.numel() for p in plain.parameters())
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    return sizes, failures, encoders


def check_real(name: str) -> None:
    """Everything a user does with a model, on one architecture."""
    torch.manual_seed(0)
    model = timm.create_model(f"isomax_{name}", num_classes=CLASSES, drop_in=False)
    size = get_model_input_config(model)["input_size"][1:]
    images = torch.randn(2, 3, *size)
    heads = head_modules(model)
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    for head in heads:
        # as after some training: prototypes apart from each other
        nn.init.normal_(head.prototypes, std=0.1)
        head.register_forward_hook(lambda module, args, out: seen.update({module: (args[0], out)}))
    model.train()
    out = model(images)
    logits = sum(o for o in out if o.shape[-1] == CLASSES) if isinstance(out, tuple) else out
    labels = torch.arange(len(logits)) % CLASSES
    nn.functional.cross_entropy(10 * logits, labels).backward()
    for head in heads:
        gradient = head.prototypes.grad
        assert gradient is not None, "no gradient"
        assert gradient.isfinite().all(), "gradient not finite"
        assert (gradient != 0).any(dim=1).all(), "a prototype without gradient"
    model.eval()
    seen.clear()
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, CLASSES), f"logits of shape {tuple(logits.shape)}"
        assert (logits <= 0).all(), "a logit above zero"
        for head, (features, output) in seen.items():
            if features.dim() == 3:  # tokens
                features, output = features.flatten(0, 1), output.flatten(0, 1)
            torch.testing.assert_close(output, -isomax_distances(features, head.prototypes))
        assert seen, "no head was used"
        if len(heads) == 1:
            (output,) = (out for _, out in seen.values())
            torch.testing.assert_close(logits, output.flatten(1))
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        assert features is not None
        with tempfile.TemporaryDirectory() as folder:
            isomax_timm.save_model(model, folder + "/model")
            loaded = isomax_timm.load_model(folder + "/model")
            assert torch.equal(loaded(images), logits), "other logits after loading"
        # timm itself drops the distilled half of some classifiers here: ask it what is left
        plain = timm.create_model(name, num_classes=CLASSES)
        plain.reset_classifier(CLASSES - 2)
        model.reset_classifier(CLASSES - 2)
        assert model.num_classes == CLASSES - 2
        left = classifier_leaves(plain, CLASSES - 2)
        assert len(head_modules(model)) == left, "reset_classifier lost a head"
        assert model(images).shape == (2, CLASSES - 2)


def main() -> int:
    sizes, failures, encoders = sweep_meta()
    print(f"meta device: {len(sizes)} of {len(sizes) + len(failures)} architectures took a head")
    print(f"encoders without a classifier, refused: {', '.join(encoders)}")
    for name, reason in failures.items():
        print(f"  {name}: {reason}")
    smallest: dict[str, str] = {}
    for name in sizes:
        family = _registry._model_to_module[name]
        if family not in smallest or sizes[name] < sizes[smallest[family]]:
            smallest[family] = name
    wrong = {}
    for name in track(smallest.values(), description="real tensors"):
        try:
            check_real(name)
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            traceback.print_exc()
    print(f"real tensors: {len(smallest) - len(wrong)} of {len(smallest)} families")
    for name, reason in wrong.items():
        print(f"  {name} ({math.ceil(sizes[name] / 1e6)} M parameters): {reason}")
    return bool(failures or wrong)


if __name__ == "__main__":
    sys.exit(main())
