"""References of detectors that run the model: for gradients, inner layers or dropout."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.special import softmax
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor, nn

from .case import BATCH, Array, Case
from .references_on_outputs import gaussian_distances

# -- gradients ---------------------------------------------------------------------------------


def grad_norm(case: Case) -> Array:
    """Of the weights of a linear classifier: features times what the posteriors are off from
    uniform."""
    off = softmax(case.logits[1], axis=1) - 1 / case.logits[1].shape[1]
    return -np.abs(case.features[1]).sum(axis=1) * np.abs(off).sum(axis=1)


def grad_norm_all(case: Case) -> Array:
    def norm(image: Tensor) -> float:
        loss = -case.model(image).log_softmax(dim=1).mean()
        gradients = torch.autograd.grad(loss, list(case.model.parameters()))
        return -sum(float(g.abs().sum()) for g in gradients)

    return np.array([norm(image) for image in case.test.split(1)])


def grad_uncertainty(case: Case) -> Array:
    """Of weights and bias of a linear classifier, in closed form."""
    logits = case.logits[1]
    off = logits.shape[1] * softmax(logits, axis=1) - 1
    return -((case.features[1] ** 2).sum(axis=1) + 1) * (off**2).sum(axis=1)


def odin(case: Case, step: float = 0.0014, temperature: float = 1000) -> Array:
    def loss(x: Tensor) -> Tensor:
        return -(case.model(x) / temperature).log_softmax(dim=1).amax(dim=1).sum()

    logits = case.outputs(_step_down(case, loss, step))[0]
    return -softmax(logits / temperature, axis=1).max(axis=1)


def mahalanobis_odin(case: Case, step: float = 0.002) -> Array:
    train, labels = case.features[0], case.labels
    means = np.stack([train[labels == k].mean(axis=0) for k in np.unique(labels)])
    residuals = train - means[labels]
    precision = torch.from_numpy(
        EmpiricalCovariance(assume_centered=True).fit(residuals).precision_
    )

    def distance(x: Tensor) -> Tensor:
        features = case.model.forward_head(case.model.forward_features(x), pre_logits=True)
        gaps = features[:, None] - torch.from_numpy(means)
        return torch.einsum("bkd,de,bke->bk", gaps, precision, gaps).amin(dim=1).sum()

    moved = _step_down(case, distance, step)
    return gaussian_distances(train, labels, case.outputs(moved)[1])[0]


def _step_down(case: Case, loss: Callable[[Tensor], Tensor], step: float) -> Tensor:
    """Images, a step towards a lower loss away; the step in units of pixels from 0 to 1."""
    std = torch.tensor(case.std)[:, None, None]
    moved = []
    for x in case.test.split(BATCH):
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x)
        moved.append((x - step * gradient.sign() / std).detach())
    return torch.cat(moved)


# -- several layers ----------------------------------------------------------------------------


def multi_mahalanobis(case: Case) -> Array:
    def means(images: Tensor) -> list[Array]:
        with torch.no_grad():
            batches = [case.stages(x)[1] for x in images.split(BATCH)]
        return [torch.cat(s).mean(dim=(2, 3)).numpy() for s in zip(*batches, strict=True)]

    pairs = zip(means(case.train), means(case.test), strict=True)
    return sum(gaussian_distances(train, case.labels, test)[0] for train, test in pairs)


def gram(case: Case) -> Array:
    """A tenth of each class is set apart, drawn as torch's generator goes."""
    poles = range(1, 5)

    def statistics(images: Tensor) -> list[Array]:
        with torch.no_grad():
            batches = [case.stages(x)[1] for x in images.split(BATCH)]
        stages = [torch.cat(s).flatten(2).numpy() for s in zip(*batches, strict=True)]

        def rows(f: Array, p: int) -> Array:
            sums = (f**p @ (f**p).transpose(0, 2, 1)).sum(axis=2)
            return np.sign(sums) * np.abs(sums) ** (1 / p)

        return [np.stack([rows(f, p) for p in poles], axis=1) for f in stages]

    def deviation(g: Array, low: Array, high: Array) -> Array:
        below, above = (low - g).clip(0) / np.abs(low + 1e-6), (g - high).clip(0)
        return (below + above / np.abs(high + 1e-6)).sum(axis=(1, 2))

    places = [np.flatnonzero(case.labels == k) for k in np.unique(case.labels)]
    orders = [torch.randperm(len(place)).numpy() for place in places]
    predicted, total = case.logits[1].argmax(axis=1), np.zeros(len(case.test))
    for train, test in zip(statistics(case.train), statistics(case.test), strict=True):
        low, high, apart = [], [], []
        for place, order in zip(places, orders, strict=True):
            held, rest = np.split(train[place][order], [len(place) // 10])
            low.append(rest.min(axis=0))
            high.append(rest.max(axis=0))
            apart.append(deviation(held, low[-1], high[-1]))
        expected = np.concatenate(apart).mean()
        total += deviation(test, np.stack(low)[predicted], np.stack(high)[predicted]) / expected
    return total


def nac(case: Case, bins: int = 50, steepness: float = 100, enough: int = 50) -> Array:
    def states(images: Tensor) -> list[Array]:
        batches = []
        for x in images.split(BATCH):
            logits, stages = case.stages(x)
            # the divergence from uniform, up to a constant
            loss = -logits.log_softmax(dim=1).mean(dim=1).sum()
            products = torch.autograd.grad(loss, stages)
            batches.append(
                [(z * g).mean(dim=(2, 3)).detach() for z, g in zip(stages, products, strict=True)]
            )
        return [torch.cat(s).mul(steepness).sigmoid().numpy() for s in zip(*batches, strict=True)]

    left = np.geomspace(1e-6, 0.5, bins // 2 + 1)
    edges = np.concatenate([left, (1 - left[::-1])[1:]])
    score = np.zeros(len(case.test))
    for train, test in zip(states(case.train), states(case.test), strict=True):
        # a state of exactly 0, of a dead activation, lies on the middle edge: it counts as above
        of_train, of_test = (np.searchsorted(edges[1:-1], z, "right") for z in (train, test))
        for neuron in range(train.shape[1]):
            counts = np.bincount(of_train[:, neuron], minlength=bins)
            covered = np.minimum(counts[of_test[:, neuron]] / enough, 1)
            score -= covered / train.shape[1]
    return score


def mcd(case: Case, passes: int = 30) -> Array:
    """Dropout as torch's generator goes; it draws the same in float32 and float64."""
    case.model.train()
    for module in case.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        batches = [
            torch.stack([case.model(x).softmax(dim=1) for _ in range(passes)])
            for x in case.test.split(BATCH)
        ]
    case.model.eval()
    return torch.cat(batches, dim=1).numpy().var(axis=0, ddof=1).mean(axis=1)
