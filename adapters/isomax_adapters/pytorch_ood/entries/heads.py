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
    found = {} if head is None else head.state_dict()
    return vars(detector) | {f"head.{key}": value for key, value in found.items()}


def _put_head(detector: Any, state: Mapping[str, Any]) -> None:
    if found := put_back(detector, state).get("head"):
        prototypes = found["prototypes"]
        classes, width = prototypes.shape
        head = detector.head_class(width, classes, device="meta", dtype=prototypes.dtype)
        detector.head = head.to_empty(device="cpu").eval()
        detector.head.load_state_dict(found)


ENTRIES: dict[str, Wiring] = {
    "EntropicScore": Wiring(
        isomax.EntropicScore,
        "logits",
        isomax.EntropicScore.info.paper.url,
        _needs_a_distance_head,
    ),
    "MinimumDistanceScore": Wiring(
        isomax.MinimumDistanceScore,
        "logits",
        isomax.MinimumDistanceScore.info.paper.url,
        _needs_a_distance_head,
    ),
    "MaxMeanLogitEntropyScore": Wiring(
        isomax.MaxMeanLogitEntropyScore,
        "logits",
        isomax.MaxMeanLogitEntropyScore.info.paper.url,
        _needs_a_distance_head,
    ),
    "PostHocIsoMax": Wiring(
        isomax.PostHocIsoMax,
        "pooled features; prototypes trained on them from zero",
        isomax.PostHocIsoMax.info.paper.url,
        differs="the head is put on the features of a model that stays as it is",
        fit_large=fit_as_it_is,
        state=_head,
        restore=_put_head,
    ),
    "PostHocIsoMaxPlus": Wiring(
        isomax.PostHocIsoMaxPlus,
        "normalised pooled features; prototypes at the class means",
        isomax.PostHocIsoMaxPlus.info.paper.url,
        differs="the head is put on the features of a model that stays as it is",
        fit_large=fit_as_it_is,
        state=_head,
        restore=_put_head,
    ),
    "PostHocDisMax": Wiring(
        isomax.PostHocDisMax,
        "normalised pooled features; prototypes at the class means",
        isomax.PostHocDisMax.info.paper.url,
        differs="the head is put on the features of a model that stays as it is",
        fit_large=fit_as_it_is,
        state=_head,
        restore=_put_head,
    ),
}
