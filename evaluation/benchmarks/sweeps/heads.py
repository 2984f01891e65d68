"""Attach a head to every architecture of the installed timm; print the count and each exception.

``tox -e sweep [-- PATTERN...]``. First every architecture on the meta device: a head must be in the
place of every classifier leaf. Then the smallest member of each of timm's model families on real
tensors: forward, backward, logits, reset_classifier, save and load; and whatever of timm's and
torch's tools work on the architecture itself.
"""

import math
import sys
import tempfile
import traceback
from collections.abc import Callable

import pytest
import timm
import torch
from rich.progress import track
from timm.layers import set_scriptable
from timm.models import _registry, get_notrace_functions, get_notrace_modules
from timm.models._input import get_model_input_config
from timm.utils import reparameterize_model
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

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


def tools(model: nn.Module, images: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Ways to run a model that give its logits."""

    def symbolic() -> torch.Tensor:
        options = {
            "leaf_modules": get_notrace_modules(),
            "autowrap_functions": get_notrace_functions(),
            "param_shapes_constant": True,
        }
        train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=options)
        traced = create_feature_extractor(
            model,
            train_return_nodes=train_nodes[-1:],
            eval_return_nodes=eval_nodes[-1:],
            tracer_kwargs=options,
        )
        (logits,) = traced(images).values()
        return logits

    return {
        "scripted": lambda: torch.jit.script(model)(images),
        "traced": lambda: torch.jit.trace(model, images, check_trace=False)(images),
        "symbolically traced": symbolic,
        "reparameterized": lambda: reparameterize_model(model)(images),
    }


def check_tools(name: str) -> None:
    """What works on an architecture works on it with a head, and gives the logits of the head."""
    for number, prefix in enumerate(("", "isomaxplus_")):
        torch.manual_seed(0)
        with set_scriptable(True):
            model = timm.create_model(prefix + name, num_classes=CLASSES).eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        images = torch.randn(2, 3, *get_model_input_config(model)["input_size"][1:])
        with torch.no_grad():
            logits = model(images)
            found = {}
            for tool, run in tools(model, images).items():
                try:
                    found[tool] = run()
                except Exception as error:
                    found[tool] = error
        if number == 0:
            working = [tool for tool, out in found.items() if isinstance(out, torch.Tensor)]
            continue
        for tool in working:
            if isinstance(found[tool], Exception):
                raise RuntimeError(f"cannot be {tool}") from found[tool]
            torch.testing.assert_close(
                found[tool], logits, rtol=1e-3, atol=1e-3, msg=lambda m, t=tool: f"{t}: {m}"
            )
    outputs = {}
    for prefix in ("", "isomaxplus_"):
        torch.manual_seed(0)
        try:
            model = timm.create_model(prefix + name, features_only=True).eval()
            with torch.no_grad():
                outputs[prefix] = model(images)
        except Exception as error:
            outputs[prefix] = error
    if not isinstance(outputs[""], Exception):
        assert isinstance(outputs["isomaxplus_"], list), f"features: {outputs['isomaxplus_']}"
        torch.testing.assert_close(outputs["isomaxplus_"], outputs[""])


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
            check_tools(name)
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            traceback.print_exc()
    print(f"real tensors: {len(smallest) - len(wrong)} of {len(smallest)} families")
    for name, reason in wrong.items():
        print(f"  {name} ({math.ceil(sizes[name] / 1e6)} M parameters): {reason}")
    return bool(failures or wrong)


if __name__ == "__main__":
    sys.exit(main())
