"""Work that is killed at random moments and run again, in a process of its own."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import timm
import torch

from isomax_adapters.timm import save_model
from isomax_evaluation import compare, train
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.training.recipes import RECIPES

KILLS = 10


def training(folder):
    """With everything that keeps state from step to step or draws random numbers."""
    recipe = replace(RECIPES["digits"], epochs=12, ema_decay=0.9, mixup=0.2, hflip=0.5)
    train(
        "digits",
        folder,
        model="test_resnet",
        recipe=recipe,
        images_per_class=60,
        preprocessing=Preprocessing(image_size=32),
    )


def comparison(folder):
    """With detectors of every kind: logits, features, maps, gradients, pytorch-ood's own fit."""
    given = folder.parent / "given"
    if not given.exists():
        torch.manual_seed(0)
        save_model(timm.create_model("test_resnet", num_classes=7), given, list("0123456"))
    compare(
        output=folder,
        models={"given": given},
        losses=["softmax", "isomax"],
        detectors=["MaxLogit", "EntropicScore", "Mahalanobis", "KNN", "ReAct-maps", "ODIN", "Gram"],
        seeds=1,
        recipe=replace(RECIPES["digits"], epochs=2),
        images_per_class=60,
        test_images=60,
        reading=Reading(workers=0),
    )


def run(work, folder):
    """In a process that starts with all of it imported; its id."""
    child = os.fork()
    if child == 0:
        work(folder)
        os._exit(0)
    return child


def kill_and_run_again(work, folder):
    """Until it is done; gives how often it was killed.

    Once into ``folder/whole``, which nobody kills; then into ``folder/killed``, where each process
    lives up to a fifth of the time that the whole took.
    """
    started = time.monotonic()
    assert os.waitpid(run(work, folder / "whole"), 0)[1] == 0
    whole = time.monotonic() - started
    moments = random.Random(1)
    killed = 0
    while True:
        child = run(work, folder / "killed")
        deadline = time.monotonic() + moments.uniform(0, whole / 5)
        done = 0
        while not done and (killed >= KILLS or time.monotonic() < deadline):
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if done:
            assert status == 0, status
            return killed
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1


def in_own_process(work, folder):
    """Of :func:`training` or :func:`comparison`; gives how often it was killed."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, work.__name__, folder],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    work = {"training": training, "comparison": comparison}[sys.argv[1]]
    print(kill_and_run_again(work, Path(sys.argv[2])))
