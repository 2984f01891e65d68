"""What the environment says of processes and ways to train, besides what the recipe says."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from isomax_evaluation import train
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.jobs import LAUNCHED, accelerator_for
from isomax_evaluation.training.recipes import RECIPES

from ...settings import grouped

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"} | {
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29501",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "present", [("WORLD_SIZE",), ("LOCAL_RANK",), ("RANK",), ("RANK", "WORLD_SIZE"), LAUNCHED[:4]]
)
def test_half_a_launch_says_what_is_there_and_what_is_missing(present, monkeypatch):
    for name in present:
        monkeypatch.setenv(name, WHOLE[name])
    with pytest.raises(InputError) as raised, accelerator_for(RECIPES["digits"]):
        pass
    there = ", ".join(f"{name}={WHOLE[name]}" for name in present)
    missing = ", ".join(name for name in LAUNCHED if name not in present)
    assert str(raised.value).startswith(f"the environment has {there}, as of one of several")
    assert f"but not {missing}; start it with torchrun" in str(raised.value)


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_other_ways_to_train_are_refused(way, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    with (
        pytest.raises(InputError, match=f"ACCELERATE_USE_{way} is set"),
        accelerator_for(RECIPES["digits"]),
    ):
        pass


def test_what_one_process_may_have_says_nothing(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "29501")):
        monkeypatch.setenv(name, value)
    with accelerator_for(RECIPES["digits"]) as accelerator:
        assert accelerator.num_processes == 1


def test_the_environment_changes_nothing_of_a_training(tmp_path, monkeypatch):
    recipe = replace(RECIPES["digits"], epochs=1)
    given = {"model": "test_resnet", "recipe": recipe, "image_size": 32, "images_per_class": 60}
    expected = train("digits", tmp_path / "plain", **grouped(given))
    for name, value in (("GRADIENT_ACCUMULATION_STEPS", "10"), ("DYNAMO_BACKEND", "eager")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    found = train("digits", tmp_path / "set", **grouped(given))
    first, second = (load_file(folder / "model.safetensors") for folder in (expected, found))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    rates = [
        [json.loads(line).get("lr") for line in (at / "metrics.jsonl").read_text().splitlines()]
        for at in (tmp_path / "plain", tmp_path / "set")
    ]
    assert rates[0] == rates[1]
