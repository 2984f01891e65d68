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
        head, (torch.randn(3, 8),), dynamic_shapes={"features": {0: batch}}, strict=False
    )
    features = torch.randn(7, 8)
    torch.testing.assert_close(program.module()(features), head(features))


@every_head
@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 8), (2, 8, 3, 4)])
def test_torchscript_has_the_values_and_the_gradients(head_class, shape):
    head = make(head_class).eval()
    features = torch.randn(shape)
    for other in (torch.jit.script(head), torch.jit.trace(head, features)):
        torch.testing.assert_close(other(features), head(features))
        inputs = features.clone().requires_grad_()
        expected = torch.autograd.grad(head(inputs).square().sum(), (inputs, *head.parameters()))
        actual = torch.autograd.grad(other(inputs).square().sum(), (inputs, *other.parameters()))
        torch.testing.assert_close(actual, expected)


@every_head
@pytest.mark.parametrize(
    ("shape", "other"), [((2, 8), (5, 8)), ((2, 3, 8), (5, 4, 8)), ((2, 8, 3, 4), (5, 8, 6, 2))]
)
def test_traces_are_not_bound_to_the_size_of_the_batch(head_class, shape, other):
    head, features = make(head_class), torch.randn(other)
    traced = torch.jit.trace(head, torch.randn(shape))
    torch.testing.assert_close(traced(features), head(features))


@every_head
def test_scripted_heads_carry_the_entropic_scale_in_training_only(head_class):
    head, features = make(head_class, drop_in=True), torch.randn(4, 8)
    scripted = torch.jit.script(head)
    for mode in (True, False):
        torch.testing.assert_close(scripted.train(mode)(features), head.train(mode)(features))


@every_head
def test_torchscript_gradient_at_distance_zero_is_finite(head_class):
    head = make(head_class)
    features = head.prototypes[:2].detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.jit.script(head)(features).sum(), features)
    assert gradient.isfinite().all()


@every_head
@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 8), (2, 8, 3, 4)])
def test_symbolic_trace_takes_the_distances_as_they_are(head_class, shape):
    head, features = make(head_class, drop_in=True), torch.randn(shape)
    for mode in (True, False):
        traced = torch.fx.symbolic_trace(head.train(mode))
        assert torch.equal(traced(features), head(features))
        torch.testing.assert_close(torch.jit.script(traced)(features), traced(features))


@every_head
def test_it_has_the_attributes_of_a_linear_layer(head_class):
    head = make(head_class)
    assert head.out_features == 5
    assert head.weight is head.prototypes
    assert torch.equal(head.bias, torch.zeros(5))
    assert "weight" not in dict(head.named_parameters())
    assert "bias" not in head.state_dict()


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
import os, sys, torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from isomax import DisMaxHead, IsoMaxHead, IsoMaxLoss

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
content = torch.load(sys.argv[1], weights_only=True)
half = slice(4 * rank, 4 * rank + 4)
gradients = {}
for head_class in (DisMaxHead, IsoMaxHead):
    for name, parallel in (("replicated", DistributedDataParallel), ("sharded", fully_shard)):
        head = head_class(8, 5)
        head.load_state_dict(content[head_class.__name__])
        model = parallel(head)
        IsoMaxLoss()(model(content["features"][half]), content["labels"][half]).backward()
        gradients[head_class.__name__, name] = [
            p.grad if name == "replicated" else p.grad.full_tensor() for p in model.parameters()
        ]
if rank == 0:
    torch.save(gradients, sys.argv[2])
torch.distributed.barrier()
os._exit(0)  # a sharded model keeps the group, whose threads may abort an interpreter that ends
"""


def test_data_parallel_and_sharded_heads_average_the_gradients(free_port, tmp_path):
    torch.manual_seed(0)
    features, labels = torch.randn(8, 8), torch.arange(8) % 5
    heads = {head_class.__name__: make(head_class) for head_class in (DisMaxHead, IsoMaxHead)}
    for head in heads.values():
        IsoMaxLoss()(head(features), labels).backward()
    states = {name: head.state_dict() for name, head in heads.items()}
    torch.save({**states, "features": features, "labels": labels}, tmp_path / "in.pt")
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED)
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
    assert len(gradients) == 4
    for (name, _), found in gradients.items():
        torch.testing.assert_close(found, [p.grad for p in heads[name].parameters()])


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="expected at least 1"):
        IsoMaxHead(*sizes)
