# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Digits that a classifier does not know
#
# A network learns the handwritten digits 0 to 6. Then it meets 7, 8 and 9, and noise. All of it
# runs offline, on a CPU, in about a minute. Open it as a notebook with jupytext, or run it.

# %%
import numpy as np
import timm
import torch
from matplotlib import pyplot as plt
from pytorch_ood.metrics import OODMetrics
from torch.utils.data import DataLoader, TensorDataset

from isomax import IsoMaxLoss, MinimumDistanceScore
from isomax_adapters.onnx import export
from isomax_adapters.runtime import Scorer
from isomax_adapters.timm import attach
from isomax_evaluation import data
from isomax_evaluation.deployment import calibrate_model

torch.manual_seed(0)

# %% [markdown]
# ## Images
#
# Preprocessing is timm's own for evaluation. A fifth of the training images is held out: it will
# set the threshold, so it must not train anything.

# %%
model = attach(timm.create_model("test_resnet", num_classes=7), head="isomax+")
config = timm.data.resolve_model_data_config(model) | {"input_size": (3, 32, 32)}
transform = timm.data.create_transform(**config)


def tensors(images):
    pixels = torch.stack([transform(images.image(i).convert("RGB")) for i in range(len(images))])
    return TensorDataset(pixels, torch.as_tensor(images.labels))


splits = data.open_splits("digits")
training, held_out = data.hold_out(splits.train, 0.2)
sets = {"known": splits.test, "7, 8, 9": data.open_images("digits-held-out"),
        "noise": data.open_images("uniform-noise")}  # fmt: skip
sets = {name: tensors(images) for name, images in sets.items()}

# %% [markdown]
# ## Training
#
# The loop is the one that you know. Only the head and the loss are IsoMax+'s.

# %%
criterion = IsoMaxLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
known = tensors(training)
epochs = 8
loader = DataLoader(known, batch_size=32, shuffle=True)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * len(loader))
for epoch in range(epochs):
    for images, labels in loader:
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
_ = model.eval()

# %% [markdown]
# ## Known from unknown
#
# The score of IsoMax+ is the distance to the nearest prototype: larger is more likely unknown.

# %%
score = MinimumDistanceScore(model)
with torch.no_grad():
    scores = {name: score(images.tensors[0]) for name, images in sets.items()}
    predicted = model(sets["known"].tensors[0]).argmax(dim=1)
accuracy = (predicted == sets["known"].tensors[1]).float().mean().item()
print(f"accuracy on known digits: {accuracy:.1%}")
auroc = {}
for name in ("7, 8, 9", "noise"):
    metrics = OODMetrics()
    metrics.update(scores["known"], torch.zeros(len(scores["known"]), dtype=torch.long))
    metrics.update(scores[name], torch.full((len(scores[name]),), -1))
    auroc[name] = metrics.compute()["AUROC"]
    print(f"AUROC against {name}: {auroc[name]:.1%}")

# %%
for name, values in scores.items():
    plt.hist(values.numpy(), bins=40, density=True, alpha=0.6, label=name)
plt.xlabel("distance to the nearest prototype")
plt.legend()
plt.show()

# %% [markdown]
# ## One file
#
# The held-out images set the threshold. The file needs no PyTorch: raw pixels in, verdict and
# p-value out.

# %%
held = DataLoader(tensors(held_out), batch_size=64)
names = [str(digit) for digit in range(7)]
calibrate_model(model, held, "digits-model", names, data_config=config)
scorer = Scorer(export("digits-model", "digits.onnx"))
for name, images in (("known", splits.test), ("7, 8, 9", data.open_images("digits-held-out"))):
    results = scorer.score([np.asarray(images.image(i).convert("RGB")) for i in range(100)])
    rejected = np.mean([result.is_ood for result in results])
    print(f"{name}: {rejected:.0%} rejected; the first one: {results[0].class_name}, "
          f"p = {results[0].p_value:.3f}")  # fmt: skip
