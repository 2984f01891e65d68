"""References of detectors on logits, pooled features and the last feature maps."""

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax, xlogy
from scipy.stats import multivariate_normal
from sklearn.covariance import EmpiricalCovariance

from .case import Array, Case

# -- logits ------------------------------------------------------------------------------------


def energy(logits: Array) -> Array:
    return -logsumexp(logits, axis=1)


def entropy(logits: Array) -> Array:
    return -xlogy(p := softmax(logits, axis=1), p).sum(axis=1)


def gen(case: Case, gamma: float = 0.1, top: int = 100) -> Array:
    log_p = np.sort(log_softmax(case.logits[1], axis=1), axis=1)[:, -top:]
    return (np.exp(gamma * log_p) * (-np.expm1(log_p)) ** gamma).sum(axis=1)


def kl_matching(case: Case) -> Array:
    train, test = (softmax(logits, axis=1) for logits in case.logits)
    classes = train.argmax(axis=1)
    typical = np.stack([train[classes == k].mean(axis=0) for k in np.unique(classes)])
    kl = (xlogy(test, test)[:, None] - xlogy(test[:, None], typical)).sum(axis=2)
    return kl.min(axis=1)


def temperature_scaling(case: Case) -> Array:
    train, test = case.logits
    rows = np.arange(len(train))

    def loss(log_t: float) -> float:
        return -log_softmax(train / np.exp(log_t), axis=1)[rows, case.labels].mean()

    t = np.exp(minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-9}).x)
    return -softmax(test / t, axis=1).max(axis=1)


def openmax(case: Case, tail: int = 25, alpha: int = 10) -> Array:
    train, test = case.logits
    classes = train.shape[1]
    alpha = min(alpha, classes)
    centers = np.stack([train[case.labels == k].mean(axis=0) for k in range(classes)])
    unlikely = np.empty_like(test)
    for k, center in enumerate(centers):
        furthest = np.sort(np.linalg.norm(train[case.labels == k] - center, axis=1))[-tail:]
        shape, scale = _weibull(furthest - furthest[0] + 10000)  # the shift of the authors' libMR
        distance = np.linalg.norm(test - center, axis=1) - furthest[0] + 10000
        unlikely[:, k] = -np.expm1(-((distance / scale) ** shape))
    rank = (-test).argsort(axis=1).argsort(axis=1)
    revised = test * unlikely * np.clip((alpha - rank) / alpha, 0, None)
    all_logits = np.column_stack([revised.sum(axis=1), test - revised])
    return softmax(all_logits, axis=1)[:, 0]


def _weibull(x: Array) -> tuple[float, float]:
    """Shape and scale of the greatest likelihood."""
    log_x = np.log(x / x.max())

    def slope(shape: float) -> float:
        weights = np.exp(shape * log_x)
        return (weights * log_x).sum() / weights.sum() - 1 / shape - log_x.mean()

    shape = brentq(slope, 1e-3, 1e8)
    return shape, x.max() * np.exp(shape * log_x).mean() ** (1 / shape)


# -- features ----------------------------------------------------------------------------------


def unit(z: Array) -> Array:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def gaussian_distances(train: Array, labels: Array, test: Array) -> tuple[Array, Array]:
    """Squared Mahalanobis distance to the nearest class, and to everything."""
    means = np.stack([train[labels == k].mean(axis=0) for k in np.unique(labels)])

    def squared(residuals: Array, centers: Array) -> Array:
        precision = EmpiricalCovariance(assume_centered=True).fit(residuals).precision_
        gaps = [test - center for center in centers]
        return np.stack([((gap @ precision) * gap).sum(axis=1) for gap in gaps]).min(axis=0)

    overall = train.mean(axis=0)
    return squared(train - means[labels], means), squared(train - overall, overall[None])


def mahalanobis(case: Case) -> Array:
    return gaussian_distances(case.features[0], case.labels, case.features[1])[0]


def rmd(case: Case) -> Array:
    nearest, everything = gaussian_distances(case.features[0], case.labels, case.features[1])
    return nearest - everything


def mahalanobis_pp(case: Case) -> Array:
    train, test = (unit(z) for z in case.features)
    return gaussian_distances(train, case.labels, test)[0]


def rmd_pp(case: Case) -> Array:
    train, test = (unit(z) for z in case.features)
    nearest, everything = gaussian_distances(train, case.labels, test)
    return nearest - everything


def post_hoc_isomax(case: Case) -> Array:
    return entropy(-distances_to_means(*case.features, case.labels))


def post_hoc_isomax_plus(case: Case) -> Array:
    return directions_to_means(case).min(axis=1)


def post_hoc_dismax(case: Case) -> Array:
    distances = directions_to_means(case) / np.sqrt(2)
    logits = -(distances + distances.mean(axis=1, keepdims=True))
    return entropy(logits) - logits.max(axis=1) - logits.mean(axis=1)


def directions_to_means(case: Case) -> Array:
    """Distances of normalised features to the normalised means of those of each class."""
    train, test = (unit(z) for z in case.features)
    means = [train[case.labels == k].mean(axis=0) for k in range(case.labels.max() + 1)]
    return np.linalg.norm(test[:, None] - unit(np.stack(means)), axis=2)


def distances_to_means(train: Array, test: Array, labels: Array) -> Array:
    means = np.stack([train[labels == k].mean(axis=0) for k in range(labels.max() + 1)])
    return np.linalg.norm(test[:, None] - means, axis=2)


def knn(case: Case, k: int = 50) -> Array:
    train, test = (unit(z) for z in case.features)
    return np.sqrt(np.sort(2 - 2 * test @ train.T, axis=1).clip(0)[:, k - 1])


def nnguide(case: Case, k: int = 10) -> Array:
    bank = unit(case.features[0]) * -energy(case.logits[0])[:, None]
    guidance = np.sort(unit(case.features[1]) @ bank.T, axis=1)[:, -k:].mean(axis=1)
    return guidance * energy(case.logits[1])


def vim(case: Case) -> Array:
    train, test = case.features
    width = train.shape[1]
    principal = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    origin = -np.linalg.pinv(case.weight) @ case.bias
    # the right singular vectors are the principal directions, largest first
    residual = np.linalg.svd(train - origin, full_matrices=True)[2][principal:].T
    norms = [np.linalg.norm((z - origin) @ residual, axis=1) for z in (train, test)]
    alpha = case.logits[0].max(axis=1).mean() / norms[0].mean()
    return alpha * norms[1] + energy(case.logits[1])


def she(case: Case) -> Array:
    train, test = case.features
    of_train, of_test = (logits.argmax(axis=1) for logits in case.logits)
    right = of_train == case.labels
    patterns = np.stack(
        [train[right & (case.labels == k)].mean(axis=0) for k in np.unique(case.labels)]
    )
    return -(test * patterns[of_test]).sum(axis=1)


def fdbd(case: Case) -> Array:
    train, test = case.features
    logits, weight = case.logits[1], case.weight
    best = logits.argmax(axis=1)
    scores = []
    for z, row, k in zip(test, logits, best, strict=True):
        others = np.arange(len(weight)) != k
        gaps = (row[k] - row[others]) / np.linalg.norm(weight[k] - weight[others], axis=1)
        scores.append(-gaps.mean() / np.linalg.norm(z - train.mean(axis=0)))
    return np.array(scores)


def nci(case: Case) -> Array:
    train, test = case.features
    centered = test - train.mean(axis=0)
    predicted = case.weight[case.logits[1].argmax(axis=1)]
    return -(centered * predicted).sum(axis=1) / np.linalg.norm(centered, axis=1)


def dice(case: Case, p: float = 0.9) -> Array:
    train, test = case.features
    contribution = case.weight * train.mean(axis=0)
    weight = np.where(contribution > np.quantile(contribution, p), case.weight, 0)
    return energy(test @ weight.T + case.bias)


def lts(case: Case, p: float = 0.05) -> Array:
    positive = case.features[1].clip(0)
    top = positive.shape[1] - round(positive.shape[1] * (1 - p))
    scale = positive.sum(axis=1) / np.sort(positive, axis=1)[:, -top:].sum(axis=1)
    return energy(case.logits[1] * scale[:, None] ** 2)


def pnml(case: Case) -> Array:
    train, test = (unit(z) for z in case.features)
    projection = ((test @ np.linalg.pinv(train)) ** 2).sum(axis=1)
    p = softmax(case.classify(test), axis=1)
    kappa = (projection / (1 + projection))[:, None]
    return np.log((p / (p + (1 - p) * p**kappa)).sum(axis=1)) / np.log(p.shape[1])


def gmm(case: Case, share: float = 1e-6) -> Array:
    train, test = case.features
    classes = [train[case.labels == k] for k in np.unique(case.labels)]
    ridge = share * np.mean([z.var(axis=0) for z in classes])
    logs = []
    for z in classes:
        covariance = np.cov(z.T, bias=True) + ridge * np.eye(z.shape[1])
        log_density = multivariate_normal(z.mean(axis=0), covariance).logpdf(test)
        logs.append(np.log(len(z) / len(train)) + log_density)
    return -logsumexp(logs, axis=0)


# -- shaped activations ------------------------------------------------------------------------


def react(case: Case, pooled: bool, p: float = 0.9) -> Array:
    train, test = case.features if pooled else case.maps
    return _energy_of(case, np.minimum(test, np.quantile(train, p)))


def vra(case: Case, low: float = 0.6, high: float = 0.95) -> Array:
    train, test = case.features
    bottom, top = np.quantile(train, [low, high], axis=0)
    return _energy_of(case, np.where(test < bottom, 0, np.minimum(test, top)))


def vra_maps(case: Case, low: float = 0.01, high: float = 0.99) -> Array:
    train, test = case.maps
    return _energy_of(case, test.clip(*np.quantile(train, [low, high], axis=0)))


def ash(case: Case, pooled: bool, p: float) -> Array:
    test = case.features[1] if pooled else case.maps[1]
    flat = test.reshape(len(test), -1)
    kept = flat.shape[1] - round(flat.shape[1] * p)
    smallest = np.sort(flat, axis=1)[:, -kept, None]
    pruned = np.where(flat < smallest, 0, flat)
    scale = np.exp(flat.sum(axis=1) / pruned.sum(axis=1))
    return _energy_of(case, (pruned * scale[:, None]).reshape(test.shape))


def scale(case: Case, pooled: bool, p: float) -> Array:
    test = case.features[1] if pooled else case.maps[1]
    flat = test.reshape(len(test), -1)
    kept = flat.shape[1] - round(flat.shape[1] * p)
    factor = np.exp(flat.sum(axis=1) / np.sort(flat, axis=1)[:, -kept:].sum(axis=1))
    return _energy_of(case, (flat * factor[:, None]).reshape(test.shape))


def rank_feat(case: Case) -> Array:
    maps = case.maps[1]
    flat = maps.reshape(*maps.shape[:2], -1)
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    first = s[:, :1, None] * u[:, :, :1] @ v[:, :1]
    return _energy_of(case, (flat - first).reshape(maps.shape))


def _energy_of(case: Case, activations: Array) -> Array:
    if activations.ndim == 4:
        activations = activations.mean(axis=(2, 3))
    return energy(case.classify(activations))
