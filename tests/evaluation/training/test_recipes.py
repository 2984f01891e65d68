"""Values that no training can have are refused; those that will not do what they say are named."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.jobs import Job, build_model, data_config, make_optimizer
from isomax_evaluation.training.recipes import RECIPES, Recipe, check_recipe, doubts_of_recipe
from isomax_evaluation.training.source import Source

WITH_INTERVAL = [
    part
    for part in fields(Recipe)
    if part.metadata["allowed"] and part.metadata["allowed"][0][0] in "(["
]
WITH_TEXTS = [
    part
    for part in fields(Recipe)
    if part.metadata["allowed"] and part.metadata["allowed"][0][0] not in "(["
]


def test_recipes_that_are_shipped_are_allowed():
    for recipe in RECIPES.values():
        check_recipe(recipe)


def test_every_number_has_an_interval():
    numbers = {
        part.name
        for part in fields(Recipe)
        if any(kind in str(part.type) for kind in ("int", "float"))
    }
    assert numbers == {part.name for part in WITH_INTERVAL}


@given(st.sampled_from(WITH_INTERVAL), st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_outside_of_its_interval_is_refused_with_its_name(part, value):
    low, high = map(float, part.metadata["allowed"][0][1:-1].split(","))
    given_ = (value,) if "tuple" in str(part.type) else value
    if low < value < high:
        return
    if value in (low, high) and part.metadata["allowed"][0][0 if value == low else -1] in "[]":
        return
    with pytest.raises(InputError, match=rf"^{part.name} is .*expected a number in [(\[]"):
        check_recipe(replace(Recipe(), **{part.name: given_}))


@pytest.mark.parametrize("name", [part.name for part in WITH_TEXTS])
def test_other_texts_are_refused_with_those_that_there_are(name):
    with pytest.raises(InputError, match=rf"{name} is 'nonsense'; expected .* or "):
        check_recipe(replace(Recipe(), **{name: "nonsense"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smoothing": 1.5}, r"smoothing is 1.5; expected a number in \[0, 1\)"),
        ({"clip_grad": -1.0}, "clip_grad is -1.0"),
        ({"hflip": 2.0}, r"hflip is 2.0; expected a number in \[0, 1\]"),
        ({"reprob": 3.0}, "reprob is 3.0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"scale": (0.5,)}, "expected two numbers"),
        ({"scale": (0.8, 0.2)}, "expected two numbers, from and to"),
        ({"sched": "plateau"}, "sched is 'plateau'"),
        ({"sched": "multistep"}, "takes decay_milestones"),
        ({"sched": "multistep", "decay_milestones": (5, 3)}, "expected them ascending"),
        ({"sched": "step", "decay_rate": 10.0}, "would grow"),
        ({"epochs": 5, "warmup_epochs": 6}, "longer than the training of 5 epochs"),
        ({"class_weights": True, "balanced_sampling": True}, "give one of them"),
    ],
)
def test_what_cannot_be_meant(change, message):
    with pytest.raises(InputError, match=message):
        check_recipe(replace(Recipe(), **change))


def test_a_moving_average_that_is_longer_than_the_training_is_named():
    (said,) = doubts_of_recipe(Recipe(ema_decay=0.9998), updates=78, starts_trained=False)
    assert "98% of the initial weights over 78 updates" in said
    at_most = float(said.rpartition(" ")[2])
    assert 0.05 < at_most**78 <= 0.1
    assert not doubts_of_recipe(Recipe(ema_decay=at_most), updates=78, starts_trained=False)


def test_decays_that_come_after_the_end_are_named():
    (said,) = doubts_of_recipe(
        replace(RECIPES["macedo2022"], epochs=200), updates=10**6, starts_trained=False
    )
    assert "epoch 200, 250, since training ends after 200" in said
    assert not doubts_of_recipe(RECIPES["macedo2022"], updates=10**6, starts_trained=False)


def test_an_untrained_network_keeps_no_statistics():
    recipe = replace(RECIPES["scratch"], freeze_bn=True)
    (said,) = doubts_of_recipe(recipe, updates=100, starts_trained=False)
    assert "freeze_bn" in said
    assert not doubts_of_recipe(replace(recipe, lr=0.0015), updates=100, starts_trained=True)


@pytest.mark.parametrize(
    ("recipe", "starts_trained", "said"),
    [
        (
            RECIPES["scratch"],
            True,
            "33.3 times that of fine-tuning with sgd, 0.0015 for batches of 64",
        ),
        (replace(RECIPES["finetune"], lr=1e-3), True, "is 5 times that of fine-tuning"),
        (replace(RECIPES["finetune"], lr=2e-5), True, "is 0.1 of that of fine-tuning with adamw"),
        (replace(RECIPES["finetune"], lr_base=12e-4), True, "is 3 times that of fine-tuning"),
        (replace(RECIPES["finetune"], lr_base=2e-4), True, "is 0.5 of that of fine-tuning"),
        (replace(RECIPES["finetune-transformer"], lr=0.01), True, "times that of fine-tuning"),
        (RECIPES["finetune"], False, "freeze_bn leaves an untrained network without batch norm"),
        (
            replace(RECIPES["scratch"], lr=0.01),
            False,
            "is 0.2 of what an untrained network takes with sgd, 0.05",
        ),
        (RECIPES["finetune-transformer"], False, "layer_decay 0.75 leaves the first layers"),
    ],
)
def test_a_recipe_for_the_other_kind_of_network_is_doubted(recipe, starts_trained, said):
    (doubt,) = doubts_of_recipe(recipe, 1000, starts_trained)
    assert said in doubt
    assert "give the recipe" in doubt


@pytest.mark.parametrize("batch_size", [16, 64, 1024])
@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_is_doubted_where_it_belongs(name, batch_size):
    recipe = RECIPES[name]
    if recipe.lr is None:
        recipe = replace(recipe, batch_size=batch_size)
    assert not doubts_of_recipe(recipe, 10**6, name.startswith("finetune"))


@pytest.mark.parametrize("rate", [2.5e-4, 8e-4, 1.1e-3])
def test_a_rate_near_the_recipes_is_not_doubted(rate):
    assert not doubts_of_recipe(replace(RECIPES["finetune"], lr_base=rate), 10**6, True)
    assert not doubts_of_recipe(replace(RECIPES["scratch"], epochs=0), 0, True)


def test_the_recipe_named_after_the_paper_does_what_its_code_does():
    """Weight decay of every tensor, also of batch norm and distance scale; CIFAR's mean and std."""
    recipe = RECIPES["macedo2022"]
    job = Job(Source("test_resnet", small_images=True), "isomax+", recipe)
    model = build_model(job, num_classes=10)
    groups = make_optimizer(model, recipe).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] == 1e-4 for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters()}
    config = data_config(job, model)
    assert config["mean"] == pytest.approx((0.491, 0.482, 0.446))
    assert config["std"] == pytest.approx((0.247, 0.243, 0.261))
    plain = make_optimizer(model, replace(recipe, decay_all=False)).param_groups
    assert {group["weight_decay"] for group in plain} == {0.0, 1e-4}
