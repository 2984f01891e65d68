"""The scores of our heads, and our heads on the features of a model."""

from collections.abc import Mapping
from typing import Any

import isomax
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.wiring import Wiring, fit_as_it_is, put_back


def _needs_a_distance_head(parts: Parts) -> str | None:
    return None if parts.head != "softmax" else "made for the heads of isomax"


def _head(detector: Any) -> Mapping[str, Any]:
    head = vars(detector).get("head")
    return vars(detector) | {
        f"head.{key}": value for key, value in (head.state_dict() if head else {}).items()
    }


def _put_head(detector: Any, state: Mapping[str, Any]) -> None:
    put_back(detector, {key: value for key, value in state.items() if "." not in key})
    found = {key.removeprefix("head."): value for key, value in state.items() if "." in key}
    if found:
        classes, width = found["prototypes"].shape
        head = detector.head_class(width, classes, device="meta", dtype=found["prototypes"].dtype)
        head = head.to_empty(device="cpu")
        head.load_state_dict(found)
        detector.head = head.eval()


ENTRIES: dict[str, Wiring] = {
    "EntropicScore": Wiring(
        isomax.EntropicScore,
        lambda p: isomax.EntropicScore(p.model),
        "logits",
        isomax.EntropicScore.info.paper.url,
        _needs_a_distance_head,
    ),
    "MinimumDistanceScore": Wiring(
        isomax.MinimumDistanceScore,
        lambda p: isomax.MinimumDistanceScore(p.model),
        "logits",
        isomax.MinimumDistanceScore.info.paper.url,
        _needs_a_distance_head,
    ),
    "MaxMeanLogitEntropyScore": Wiring(
        isomax.MaxMeanLogitEntropyScore,
        lambda p: isomax.MaxMeanLogitEntropyScore(p.model),
        "logits",
        isomax.MaxMeanLogitEntropyScore.info.paper.url,
        _needs_a_distance_head,
    ),
    "PostHocIsoMax": Wiring(
        isomax.PostHocIsoMax,
        lambda p: isomax.PostHocIsoMax(p.encode),
        "pooled features; prototypes trained on them from zero",
        isomax.PostHocIsoMax.info.paper.url,
        differs="the head is put on the features of a model that stays as it is",
        fit_large=fit_as_it_is,
        state=_head,
        restore=_put_head,
    ),
    "PostHocIsoMaxPlus": Wiring(
        isomax.PostHocIsoMaxPlus,
        lambda p: isomax.PostHocIsoMaxPlus(p.encode),
        "normalised pooled features; prototypes at the class means",
        isomax.PostHocIsoMaxPlus.info.paper.url,
        differs="the head is put on the features of a model that stays as it is",
        fit_large=fit_as_it_is,
        state=_head,
        restore=_put_head,
    ),
    "PostHocDisMax": Wiring(
        isomax.PostHocDisMax,
        lambda p: isomax.PostHocDisMax(p.encode),
        "normalised pooled features; prototypes at the class means",
        isomax.PostHocDisMax.info.paper.url,
        differs="the head is put on the features of a model that stays as it is",
        fit_large=fit_as_it_is,
        state=_head,
        restore=_put_head,
    ),
}
