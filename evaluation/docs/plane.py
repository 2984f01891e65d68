"""The picture of *How it works*: where softmax and IsoMax call a point of the plane unknown.

Three classes of points, a network of one hidden layer, the same start for both. The colour is the
share of held-out known points with a lower entropy; beyond the line, 95% have.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_blobs
from torch import Tensor, nn

from isomax import IsoMaxHead, IsoMaxLoss
from isomax.functional import entropic_score

CENTRES = np.array([[-2.0, -1.2], [2.0, -1.2], [0.0, 2.2]])
REACH, STEPS = 7.0, 200


def main(output: Path) -> None:
    points, classes = make_blobs(600, centers=CENTRES, cluster_std=0.5, random_state=0)
    known, labels = torch.tensor(points, dtype=torch.float32), torch.tensor(classes)
    axis = torch.linspace(-REACH, REACH, STEPS)
    plane = torch.cartesian_prod(axis, axis)
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    places = figure.subplots(1, 2)
    for place, name in zip(places, ("softmax", "IsoMax"), strict=True):
        network = fitted(name, known[:300], labels[:300])
        with torch.no_grad():
            held_out = entropic_score(network(known[300:])).sort().values
            scores = entropic_score(network(plane))
        lower = torch.searchsorted(held_out, scores).reshape(STEPS, STEPS).T / len(held_out)
        image = place.pcolormesh(axis, axis, lower, cmap="cividis", vmin=0, vmax=1)
        place.contour(axis, axis, lower, [0.95], colors="#d55e00")
        place.scatter(*points.T, c=classes, cmap="Set2", s=6, linewidths=0)
        place.set(title=name, xticks=[], yticks=[], aspect="equal")
    figure.colorbar(image, ax=places, label="known points with a lower entropy")
    figure.savefig(output, dpi=150)


def fitted(name: str, points: Tensor, classes: Tensor) -> nn.Module:
    """A network trained on points, with softmax or with IsoMax."""
    torch.manual_seed(0)
    count = len(CENTRES)
    body = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 8))
    head = nn.Linear(8, count) if name == "softmax" else IsoMaxHead(8, count)
    criterion = nn.CrossEntropyLoss() if name == "softmax" else IsoMaxLoss()
    network = nn.Sequential(body, head)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        criterion(network(points), classes).backward()
        optimizer.step()
    return network.eval()
