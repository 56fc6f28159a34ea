"""The checks of recipes pass honest ones and name what is wrong in others."""

import pytest
import ssl_tiny.train

from ssl_core.testing import Recipes


def recipes_of(train):
    return Recipes(train, words=["Tiny"], keys_per_image=lambda method: int(method.negatives == "queue"))


@pytest.mark.parametrize("name", ["smoke", "batch"])
@pytest.mark.parametrize("check", ["check_header", "check_full_size", "check_step"])
def test_recipes_with_and_without_a_queue_keep_the_promises(check, name):
    recipes = recipes_of(ssl_tiny.train)
    assert recipes.names == ["auto", "batch", "smoke"]
    getattr(recipes, check)(name)


OVERRIDE = "-  --method.momentum 0.99  # slower"


def test_scores_and_options_of_overrides_are_read(changed):
    recipes = recipes_of(changed(OVERRIDE, "81.5  --views '[{augmentation: weak}]'  # one view"))
    assert recipes.overrides("smoke") == [(81.5, ["--views", "[{augmentation: weak}]"])]


def test_commands_are_read_in_both_forms(changed):
    recipes = recipes_of(changed("Score:  ", "torchrun --nproc-per-node 8 -m ssl_tiny --config x\n# Score:  "))
    assert recipes.commands("smoke") == [["--config", "smoke", "--out", "runs/smoke"], ["--config", "x"]]


FIRST = "Tiny with a queue and a momentum branch on the embedded digits."
EVALUATION = "ssl-core eval knn runs/smoke"
HEADERS = {
    "a short first line": (FIRST, "Tiny.", "'# Tiny.' is no sentence"),
    "a first line without a method": (FIRST, FIRST.replace("Tiny", "SCE"), r"names none of \['Tiny'\]"),
    "another recipe's first line": (
        FIRST,
        "Tiny with the other images of the batch in the place of a queue.",
        "is the first line of another recipe too",
    ),
    "another recipe's command": ("train --config smoke", "train --config batch", "no command has --config smoke"),
    "a command with a typo": ("--out runs/smoke", "--outt runs/smoke", "--outt runs/smoke is refused"),
    "no score": ("# Score:     none.\n", "", "no score"),
    "an override with a typo": (OVERRIDE, "-  --method.momentun 0.99", "--method.momentun 0.99 is refused"),
    "an override without effect": (OVERRIDE, "-  --method.momentum 0.9", "--method.momentum 0.9 changes nothing"),
    "its score unknown": (OVERRIDE, "80.1  --method.momentum 0.9", "--method.momentum 0.9 changes nothing"),
    "a stray option": (OVERRIDE, "or with --method.momentum 0.99", "has an option, but is neither"),
    "another folder": (EVALUATION, EVALUATION[:-1], "evaluates runs/smok, but training writes .'runs/smoke'"),
    "an unknown evaluation": (EVALUATION, EVALUATION.replace("knn", "knm"), "'eval knm runs/smoke' is refused"),
    "an unknown protocol": (
        EVALUATION,
        "ssl-core eval linear runs/smoke --protocol moc",
        "no protocol is called 'moc'",
    ),
    "other features": (
        EVALUATION,
        f"{EVALUATION} --features projection",
        "is on the projection, but the recipe's kNN on the backbone",
    ),
}


@pytest.mark.parametrize("wrong", HEADERS)
def test_what_does_not_hold_in_a_header_is_named(changed, wrong):
    old, new, message = HEADERS[wrong]
    with pytest.raises(AssertionError, match=message):
        recipes_of(changed(old, new)).check_header("smoke")


def test_an_override_without_effect_may_repeat_the_score_of_the_recipe(changed):
    recipes = recipes_of(changed("none.\n", "kNN top-1 80.1\n#   80.1  --method.momentum 0.9\n"))
    recipes.check_header("smoke")


SIZES = {
    "a queue too short for a step": (
        "optim:",
        "method:\n  queue: {length: 60}\noptim:",
        r"64 keys do not fit .*\(60, 8\)",
    ),
    "a queue of another width": ("dim=head.out_dim", "dim=7", r"the queue is \(256, 7\), not \(256, 8\)"),
    "a queue of another length": (
        "Queue(config.queue,",
        "Queue(QueueConfig(128),",
        r"the queue is \(128, 8\), not \(256, 8\)",
    ),
    "no queue": ("self.queue = ", "self.keys = ", "keys_per_image of Recipes is 1, but there is no queue"),
    "a predictor of another width": (
        "            self.queue = ",
        "            self.predictor = nn.Linear(dim, 5)\n            self.queue = ",
        r"the predictor makes .*\[4, 5\].* of .*\[4, 8\]",
    ),
    "a parameter on the CPU": (
        "            self.queue = ",
        "            self.scale = nn.Parameter(torch.zeros(1, device='cpu'))\n            self.queue = ",
        r"not made where torch.device says: \['scale'\]",
    ),
}


@pytest.mark.parametrize("wrong", SIZES)
def test_sizes_that_do_not_fit_are_named(changed, wrong):
    old, new, message = SIZES[wrong]
    with pytest.raises(AssertionError, match=message):
        recipes_of(changed(old, new)).check_full_size("smoke")


def test_a_queue_that_was_not_spoken_of_is_named():
    recipes = Recipes(ssl_tiny.train, words=["Tiny"], keys_per_image=lambda method: 0)
    with pytest.raises(AssertionError, match="keys_per_image of Recipes is 0, but there is a queue"):
        recipes.check_full_size("smoke")


STEPS = {
    "no loss": ("loss = info_nce(", "loss = 0 * info_nce(", "the loss is 0"),
    "an infinite loss": ("loss = info_nce(", "loss = torch.inf * info_nce(", "the loss is inf"),
    "no gradient": ("self.encoder(views[0])", "self.encoder(views[0]).detach()", "no gradient reaches .'encoder"),
    "no learning rate": ("lr: 0.06", "lr: 0.0", "the optimizer moves nothing"),
    "no momentum update": ("1 - self.momentum)", "0.0)", "the momentum branch stands still"),
    "few keys": ("enqueue_(keys)", "enqueue_(keys[:3])", r"rows \[0, 1, 2\] of the queue are new, not the first 8"),
    "no keys": ("enqueue_(keys)", "enqueue_(keys[:0])", r"rows \[\] of the queue are new"),
    "more keys": ("enqueue_(keys)", "enqueue_(torch.cat([keys, -keys]))", r"14, 15\] of the queue are new"),
}


@pytest.mark.parametrize("wrong", STEPS)
def test_what_a_first_step_does_wrong_is_named(changed, wrong):
    old, new, message = STEPS[wrong]
    with pytest.raises(AssertionError, match=message):
        recipes_of(changed(old, new)).check_step("smoke")
