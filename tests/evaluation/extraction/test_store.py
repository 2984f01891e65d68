"""What a model gives is kept whole or not at all, under what it depends on."""

import resource

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from isomax_adapters.pytorch_ood import Digests, Parts, digests_of_weights
from isomax_evaluation.extraction.one_pass import one_pass
from isomax_evaluation.extraction.store import (
    OutputsInMemory,
    OutputsOnDisk,
    keeper,
)
from isomax_evaluation.output.errors import InputError


def batches(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, generator=generator),
            torch.randn(size, 5, generator=generator),
            torch.randint(-1, 3, (size,), generator=generator),
        )
        for size in sizes
    ]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_what_goes_in_comes_out_from_disk_and_from_memory(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("store") / "key"
    made = batches(sizes)
    for kept in (OutputsOnDisk(folder, {"weights": "w"}, sum(sizes)), OutputsInMemory()):
        assert kept.read() is None
        with kept:
            for batch in made:
                kept.add(*batch)
        for name, tensors in zip(
            ("logits", "features", "labels"), zip(*made, strict=True), strict=True
        ):
            assert torch.equal(getattr(kept.read(), name), torch.cat(tensors))


def test_outputs_on_disk_are_mapped_and_changes_stay_in_memory(tmp_path):
    kept = OutputsOnDisk(tmp_path / "key", {}, 4)
    with kept:
        kept.add(*batches([4])[0])
    found = kept.read()
    before = found.features.clone()
    found.features.zero_()  # as a careless detector might
    assert torch.equal(kept.read().features, before)


def test_an_interrupted_pass_keeps_nothing(tmp_path):
    kept = OutputsOnDisk(tmp_path / "key", {}, 8)

    def stop_half_way():
        with kept:
            kept.add(*batches([4])[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert kept.read() is None
    assert not list(tmp_path.iterdir())


def test_what_a_killed_pass_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / ".key.partial"
    left.mkdir()
    (left / "logits.npy").write_bytes(b"half")
    kept = OutputsOnDisk(tmp_path / "key", {}, 4)
    with kept:
        kept.add(*batches([4])[0])
    assert not left.exists()
    assert len(kept.read().labels) == 4


def test_damaged_outputs_are_named(tmp_path):
    kept = OutputsOnDisk(tmp_path / "key", {}, 4)
    with kept:
        kept.add(*batches([4])[0])
    features = tmp_path / "key" / "features.npy"
    features.write_bytes(features.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"damaged .*delete that folder"):
        kept.read()


def test_a_full_disk_is_one_line_and_keeps_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = OutputsOnDisk(tmp_path / "key", {}, 3000)

    def fill():
        with kept:
            for batch in batches([1000, 1000, 1000]):
                kept.add(*batch)

    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(InputError, match="could not keep the model's outputs"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept.read() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["nothing", "weights", "preprocessing", "images"])
def test_the_place_depends_on_weights_preprocessing_and_images(tmp_path, change):
    given_ = {"weights": Digests("a", "a"), "preprocessing": {"crop_pct": 1.0}, "images": "b"}
    changed = {"preprocessing": {"crop_pct": 0.9}, "weights": Digests("c", "a")}
    other = {change: changed.get(change, "c")}
    places = [
        keeper(tmp_path, **given_, count=3).folder,
        keeper(tmp_path, **(given_ | other if change != "nothing" else given_), count=3).folder,
    ]
    assert (places[0] == places[1]) == (change == "nothing")


def test_the_digest_of_weights_changes_with_any_tensor():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    digests = [digests_of_weights(model).whole, digests_of_weights(model).whole]
    with torch.no_grad():
        model.fc.bias[1] += 1e-6
    digests.append(digests_of_weights(model).whole)
    model.get_buffer("bn1.running_mean")[0] += 1
    digests.append(digests_of_weights(model).whole)
    assert len(set(digests)) == 3


@pytest.mark.parametrize("maps", [False, True])
def test_a_model_runs_once_over_images_whose_outputs_are_kept(maps):
    parts = Parts(timm.create_model("test_resnet", num_classes=3).eval())
    loader = [(torch.randn(4, 3, 32, 32), torch.tensor([0, -1, 2, 1])) for _ in range(3)]
    assert parts.maps_layout  # looked at with an image of its own
    passes = []
    parts.model.conv1[0].register_forward_hook(lambda *args: passes.append(len(args[1][0])))
    kept = OutputsInMemory()
    done = []
    for batch in one_pass(parts, loader, kept, maps, known_only=True, advance=done.append):
        assert (batch.maps is not None) == maps
        assert bool((batch.labels >= 0).all())
    assert sum(passes) == 9
    assert sum(done) == 12
    assert len(kept.read().labels) == 9
    passes.clear()
    for batch in one_pass(parts, loader, kept, known_only=True):
        assert len(batch.images) == 3
    assert not passes
    np.testing.assert_allclose(
        kept.read().logits[:3], parts.model(loader[0][0][[0, 2, 3]]).detach(), atol=1e-5
    )
