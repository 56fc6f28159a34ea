import dataclasses
import json

import pytest

from ssl_core.evaluate.plan import Plan, choose_protocol


@dataclasses.dataclass(frozen=True)
class Toy:
    source: str
    lr: float
    epochs: int | None = None


TOYS = {"steps": Toy("nobody", 0.5), "epochs": Toy("nobody", 0.25, epochs=3)}


def test_a_value_that_is_the_protocols_own_is_no_change():
    assert choose_protocol(TOYS, "epochs", lr=0.25, epochs=4) == (Toy("nobody", 0.25, 4), ["epochs"])
    assert choose_protocol(TOYS, "steps", lr=None, epochs=None) == (TOYS["steps"], [])


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("mocco", {}, "there is no protocol 'mocco'; choose one of steps, epochs"),
        ("steps", {"epochs": 3}, "protocol steps has no epochs to set to 3; protocols that do: epochs"),
        ("steps", {"shots": [1]}, r"protocol steps has no shots to set to \[1\]$"),
    ],
)
def test_what_a_protocol_does_not_have_is_refused(name, asked, message):
    with pytest.raises(ValueError, match=message):
        choose_protocol(TOYS, name, **asked)


def test_a_plan_says_and_saves_the_same():
    counts = {"pets": {"train": 3680, "test": 3669}, "dtd": {"train": 1880}}
    plan = Plan("steps", TOYS["steps"], [], "protocol steps: nobody", counts, "validation", "nothing")
    assert str(plan).splitlines() == [
        "protocol steps: nobody",
        "pets: train 3,680, test 3,669 images",
        "dtd: train 1,880 images",
        "selection: validation",
        "cost: nothing",
    ]
    assert json.loads(json.dumps(plan.settings())) == {
        "protocol": {"name": "steps", "source": "nobody", "lr": 0.5, "epochs": None},
        "changed": [],
        "splits": counts,
        "selection": "validation",
    }
