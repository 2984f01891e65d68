"""Detectors wired to timm models score what pytorch-ood itself scores."""

import copy
import functools
import re

import pytest
import pytorch_ood.detector as ood
import timm
import torch
from pytorch_ood.api import Detector, FeatureMapsDetector, FeaturesDetector
from torch.utils.data import DataLoader, TensorDataset

import isomax
import isomax_adapters.timm as isomax_timm
from isomax_adapters.pytorch_ood import (
    NAMES,
    Parts,
    check_names,
    detectors_for,
    why_not,
    wiring_notes,
)


def make_images():
    torch.manual_seed(0)
    # every class has a brightness of its own
    labels = torch.arange(120) % 4
    return torch.randn(120, 3, 32, 32) + 2 * labels[:, None, None, None], labels


@pytest.fixture(scope="module")
def images():
    return make_images()


@functools.cache
def trained(name):
    """A model that gets most of the images right, as some detectors ask of it."""
    inputs, labels = make_images()
    model = timm.create_model(name, num_classes=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    model.train()
    with torch.no_grad():
        for _ in range(20):  # the running averages of batch norm catch up
            model(inputs)
        model.eval()
        assert (model(inputs).argmax(dim=1) == labels).float().mean() > 0.7
    return model


def model_of(name):
    return copy.deepcopy(trained(name))


@pytest.mark.parametrize(
    "name", ["softmax_test_resnet", "isomax_test_resnet", "dismax_test_efficientnet", "dla46_c"]
)
@pytest.mark.filterwarnings("ignore")
def test_all_of_them_fit_and_score(name, images):
    model = model_of(name)
    detectors = detectors_for(model)
    assert set(detectors) | set(why_not(model)) == set(NAMES)
    assert not set(detectors) & set(why_not(model))
    loader = DataLoader(TensorDataset(*images), batch_size=40)
    for detector_name, detector in detectors.items():
        assert isinstance(detector, Detector)
        detector.fit(loader)
        scores = detector.predict(images[0][:6])
        assert scores.shape == (6,), detector_name
        assert scores.isfinite().all(), detector_name


def test_what_cannot_work_is_left_out_with_the_reason():
    assert set(why_not(model_of("softmax_test_resnet"))) == {
        "EntropicScore",
        "MinimumDistanceScore",
        "MaxMeanLogitEntropyScore",
        "MCD",
        "MCM",
        "WeightedEBO",
    }
    reasons = why_not(model_of("isomax_test_resnet"))
    linear = {"DICE", "fDBD", "NCI", "PNML", "ViM"}
    assert set(reasons) == linear | {"Entropy", "MCD", "MCM", "WeightedEBO"}
    on_tokens = why_not(timm.create_model("test_vit", num_classes=4))
    maps = {"ASH-maps", "RankFeat", "ReAct-maps", "SCALE-maps", "VRA-maps"}
    assert {name for name, reason in on_tokens.items() if "tokens" in reason} == maps
    dropping = timm.create_model("test_resnet", num_classes=4, drop_rate=0.1)
    assert "MCD" not in why_not(dropping)
    drop_in = timm.create_model("isomax_test_resnet", num_classes=4, drop_rate=0.1)
    assert "drop-in head" in why_not(drop_in)["MCD"]
    assert "distance head" in reasons["DICE"]
    pair = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4)
    assert "several" in why_not(pair)["DICE"]
    with pytest.raises(ValueError, match="unknown detector Oracle; choose from"):
        detectors_for(pair, ["Oracle"])
    with pytest.raises(ValueError, match="which layer gives its logits"):
        detectors_for(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MSP", "MaxSoftmax"),
        ("temp_scale", "TemperatureScaling"),
        ("MDS", "Mahalanobis or MinimumDistanceScore"),
        ("vim", "ViM"),
        ("Energy", "EnergyBased"),
        ("entropicscore", "EntropicScore"),
        ("Mahalanobis++", "MahalanobisPP"),
        ("RMD++", "RMDPP"),
        ("isomax+", "PostHocIsoMaxPlus"),
    ],
)
def test_other_names_are_refused_with_ours(name, meant):
    said = re.escape(f"unknown detector Oracle, {name} (is it {meant}?); choose from")
    with pytest.raises(ValueError, match=said):
        check_names(["KNN", "Oracle", name])
    check_names([name], [name])
    check_names(NAMES)


def test_only_the_named_ones_in_their_order():
    names = ["ODIN", "MaxLogit", "Mahalanobis"]
    assert list(detectors_for(model_of("softmax_test_resnet"), names)) == names


@pytest.mark.parametrize("name", ["softmax_test_resnet", "isomax_test_resnet", "dla46_c"])
def test_classifying_the_features_gives_the_logits(name, images):
    model = model_of(name)
    parts = Parts(model)
    with torch.no_grad():
        logits, features = parts.logits_and_features(images[0][:5])
        torch.testing.assert_close(logits, model(images[0][:5]))
        torch.testing.assert_close(parts.classify(features), logits)
        if parts.linear:
            torch.testing.assert_close(features @ parts.weight.T + parts.bias, logits)
    assert features.shape == (5, parts.classifier.in_features if name != "dla46_c" else 256)


def test_scores_are_pytorch_oods_own(images):
    """Wired by hand as pytorch-ood's documentation does, on a model whose parts are known."""
    model = model_of("softmax_test_resnet")
    loader = DataLoader(TensorDataset(*images), batch_size=40)

    def encoder(x):
        return model.forward_head(model.forward_features(x), pre_logits=True)

    by_hand = {
        "KNN": ood.KNN(encoder),
        "MaxSoftmax": ood.MaxSoftmax(model),
        "KLMatching": ood.KLMatching(model),
        "SHE": ood.SHE(encoder, model.fc),
        "DICE": ood.DICE(encoder, model.fc.weight, model.fc.bias, p=0.9),
        "ReAct-maps": ood.ReAct(model.forward_features, model.forward_head),
        "VRA-maps": ood.VRA(model.forward_features, model.forward_head),
        "ODIN": ood.ODIN(model, norm_std=[0.5, 0.5, 0.5]),
    }
    ours = detectors_for(model, by_hand)
    for name, theirs in by_hand.items():
        expected = theirs.fit(loader)(images[0])
        torch.testing.assert_close(ours[name].fit(loader)(images[0]), expected)


@pytest.mark.parametrize("name", ["softmax_test_resnet", "isomax_test_resnet", "dla46_c"])
def test_heads_on_a_models_features_leave_its_logits_as_they_are(name, images):
    model = model_of(name)
    parts = Parts(model)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    by_hand = {
        "PostHocIsoMax": isomax.PostHocIsoMax(None),
        "PostHocIsoMaxPlus": isomax.PostHocIsoMaxPlus(None),
        "PostHocDisMax": isomax.PostHocDisMax(None),
    }
    loader = DataLoader(TensorDataset(*images), batch_size=40)
    with torch.no_grad():
        features = torch.cat([parts.encode(x) for x, _ in loader])
    for key, detector in detectors_for(model, by_hand).items():
        scores = detector.fit(loader).predict(images[0][:6])
        expected = by_hand[key].fit_features(features, images[1])
        # features of batches of another size differ in their last bits
        expected = expected.predict_features(features[:6])
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


def test_an_attached_head_replaces_the_old_one_everywhere(images):
    model = model_of("softmax_test_resnet")
    isomax_timm.attach(model, "isomax+")
    with torch.no_grad():
        scores = detectors_for(model, ["MinimumDistanceScore"])["MinimumDistanceScore"](
            images[0][:3]
        )
        torch.testing.assert_close(scores, -model(images[0][:3]).amax(dim=1))


def test_odin_steps_in_units_of_the_preprocessing_or_of_what_is_given(images):
    model = model_of("softmax_test_resnet")
    assert Parts(model).std == (0.5, 0.5, 0.5)
    coarser = detectors_for(Parts(model, std=(0.01,) * 3), ["ODIN", "MahalanobisODIN"])
    for name, detector in detectors_for(model, coarser).items():
        loader = DataLoader(TensorDataset(*images), batch_size=40)
        scores = detector.fit(loader)(images[0][:5])
        assert not torch.allclose(coarser[name].fit(loader)(images[0][:5]), scores)


def test_a_model_of_other_channels_than_its_preprocessing_says_what_odin_lacks():
    model = timm.create_model("test_resnet", num_classes=4, in_chans=1)
    reasons = why_not(model, ["ODIN", "MahalanobisODIN", "MaxLogit"])
    assert set(reasons) == {"ODIN", "MahalanobisODIN"}
    assert "3 for 1 channels; give Parts(model, std=...)" in reasons["ODIN"]
    assert not why_not(Parts(model, std=[0.3]), ["ODIN", "MahalanobisODIN"])


def test_what_shapes_pooled_features_needs_no_maps():
    detectors = detectors_for(model_of("softmax_test_resnet"))
    for name in ("ReAct", "ASH", "SCALE", "VRA"):
        assert isinstance(detectors[name], FeaturesDetector)
        assert isinstance(detectors[f"{name}-maps"], FeatureMapsDetector)


def test_every_wiring_says_where_it_is_written():
    notes = {note.detector: note for note in wiring_notes()}
    assert tuple(notes) == NAMES
    for name, note in notes.items():
        assert note.how
        assert note.source.startswith(("https://", "pytorch_ood.detector.")), name
        if name.endswith(("-maps", "-all")):  # names that say how they are not the paper's
            assert note.source.startswith("pytorch_ood.detector.")
            assert note.differs
    assert {name for name, note in notes.items() if note.held_out} == {
        "KLMatching",
        "TemperatureScaling",
    }
    assert [note.detector for note in wiring_notes(["ODIN", "ASH"])] == ["ODIN", "ASH"]
    with pytest.raises(ValueError, match="unknown detector Oracle"):
        wiring_notes(["Oracle"])
