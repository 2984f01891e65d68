"""Heads in the places where a ``nn.Linear`` lives: compilers, exporters, copies, processes."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from isomax import DisMaxHead, IsoMaxHead, IsoMaxLoss, IsoMaxPlusHead
from isomax.functional import isomax_loss

from ..leftover_threads import NONE_LEFT

HEADS = [IsoMaxHead, IsoMaxPlusHead, DisMaxHead]
every_head = pytest.mark.parametrize("head_class", HEADS)


def make(head_class, width=8, classes=5, **kwargs):
    torch.manual_seed(0)
    head = head_class(width, classes, **kwargs)
    nn.init.normal_(head.prototypes)  # IsoMax starts at zero, where all classes are alike
    return head


@every_head
def test_logits_are_minus_distances(head_class):
    head = make(head_class)
    logits = head(torch.randn(4, 8))
    assert logits.shape == (4, 5)
    assert (logits <= 0).all()


def test_starting_points_are_the_papers():
    assert (IsoMaxHead(4, 3).prototypes == 0).all()
    for head in (IsoMaxPlusHead(64, 200), DisMaxHead(64, 200)):
        assert head.distance_scale == 1
        assert abs(float(head.prototypes.detach().std()) - 1) < 0.05


@every_head
def test_dense_features_give_dense_logits(head_class):
    head, features = make(head_class), torch.randn(2, 8, 3, 4)
    logits = head(features)
    assert logits.shape == (2, 5, 3, 4)
    torch.testing.assert_close(logits[:, :, 1, 2], head(features[:, :, 1, 2]))


@every_head
def test_tokens_are_taken_as_a_linear_layer_takes_them(head_class):
    head, tokens = make(head_class), torch.randn(2, 3, 8)
    torch.testing.assert_close(head(tokens)[:, 1], head(tokens[:, 1]))


@every_head
def test_drop_in_carries_the_entropic_scale_in_training_only(head_class):
    plain, drop_in = make(head_class), make(head_class, drop_in=True)
    features, labels = torch.randn(6, 8), torch.randint(5, (6,))
    torch.testing.assert_close(
        F.cross_entropy(drop_in.train()(features), labels),
        IsoMaxLoss()(plain.train()(features), labels),
    )
    assert torch.equal(drop_in.eval()(features), plain.eval()(features))


@every_head
def test_training_lowers_the_loss_and_moves_every_parameter(head_class):
    head = make(head_class)
    features, labels = torch.randn(32, 8), torch.arange(32) % 5
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    losses = []
    for _ in range(50):
        loss = isomax_loss(head(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert all((p != before[name]).any() for name, p in head.named_parameters())


@every_head
def test_compiles_without_a_graph_break(head_class):
    head = make(head_class, drop_in=True)
    features, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 3])

    def step(features):
        return IsoMaxLoss()(head(features), labels)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(step(features), head.prototypes)
    actual = torch.autograd.grad(compiled(features), head.prototypes)
    torch.testing.assert_close(actual, expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(features), step(features))


@every_head
def test_exports_with_a_free_batch_size(head_class):
    head = make(head_class).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        head, (torch.randn(3, 8),), dynamic_shapes={"features": {0: batch}}
    )
    features = torch.randn(7, 8)
    torch.testing.assert_close(program.module()(features), head(features))


@every_head
def test_state_dict_and_copies_round_trip(head_class):
    head, features = make(head_class), torch.randn(4, 8)
    other = head_class(8, 5)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(features), head(features))
    copied = copy.deepcopy(head)
    with torch.no_grad():
        head.prototypes.add_(1)
    assert not torch.equal(copied(features), head(features))
    ema = torch.optim.swa_utils.AveragedModel(copied)
    ema.update_parameters(head)
    assert ema(features).shape == (4, 5)


@every_head
def test_meta_construction_then_materialised(head_class):
    with torch.device("meta"):
        head = head_class(8, 5)
    assert head(torch.randn(4, 8, device="meta")).shape == (4, 5)
    head = head.to_empty(device="cpu")
    head.reset_parameters()
    assert torch.isfinite(head(torch.randn(4, 8))).all()


@every_head
def test_functional_call_grad_and_vmap(head_class):
    head = make(head_class)
    parameters = {name: p.detach() for name, p in head.named_parameters()}
    features, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 3])

    def loss(parameters, features, labels):
        logits = torch.func.functional_call(head, parameters, (features,))
        return F.cross_entropy(10 * logits, labels)

    together = torch.func.grad(loss)(parameters, features, labels)
    expected = torch.autograd.grad(IsoMaxLoss()(head(features), labels), head.prototypes)[0]
    torch.testing.assert_close(together["prototypes"], expected)
    each = torch.func.vmap(
        torch.func.grad(lambda p, f, y: loss(p, f[None], y[None])), in_dims=(None, 0, 0)
    )(parameters, features, labels)
    torch.testing.assert_close(each["prototypes"].mean(dim=0), together["prototypes"])


@every_head
def test_no_value_derived_from_the_prototypes_goes_stale(head_class):
    head, features = make(head_class).eval(), torch.randn(4, 8)
    head(features)
    with torch.no_grad():
        head.prototypes.copy_(torch.randn(5, 8))
    fresh = make(head_class).eval()
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(head(features), fresh(features))


DISTRIBUTED = """
import gc, sys, torch
import torch.distributed.nn.functional  # later, its default arguments would keep the group alive
from isomax import DisMaxHead, IsoMaxLoss

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
head = DisMaxHead(8, 5)
content = torch.load(sys.argv[1], weights_only=True)
head.load_state_dict(content["head"])
model = torch.nn.parallel.DistributedDataParallel(head)
half = slice(4 * rank, 4 * rank + 4)
IsoMaxLoss()(model(content["features"][half]), content["labels"][half]).backward()
if rank == 0:
    torch.save({name: p.grad for name, p in head.named_parameters()}, sys.argv[2])
del model
gc.collect()
torch.distributed.destroy_process_group()
"""


def test_distributed_data_parallel_averages_the_gradients(free_port, tmp_path):
    torch.manual_seed(0)
    features, labels = torch.randn(8, 8), torch.arange(8) % 5
    head = make(DisMaxHead)
    IsoMaxLoss()(head(features), labels).backward()
    torch.save(
        {"head": head.state_dict(), "features": features, "labels": labels}, tmp_path / "in.pt"
    )
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED + NONE_LEFT)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", str(free_port), script, tmp_path / "in.pt", tmp_path / "out.pt"),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    gradients = torch.load(tmp_path / "out.pt", weights_only=True)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="expected at least 1"):
        IsoMaxHead(*sizes)
