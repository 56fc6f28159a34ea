import sys
import time
from importlib import metadata

import pytest
import ssl_tiny.train

from ssl_core.recipes import run_command
from ssl_core.testing import check_imports


@pytest.mark.parametrize("arguments", [["--config", "list"], ["--config=list"], ["--out", "runs", "--config", "list"]])
def test_the_list_has_each_recipe_with_its_header(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ssl-tiny-train", *arguments])
    run_command("ssl_tiny")
    assert capsys.readouterr().out.splitlines() == [
        "auto                     Tiny on your own images: what is open is decided from them and from the machine.",
        "batch                    Tiny with the other images of the batch in the place of a queue.",
        "smoke                    Tiny with a queue and a momentum branch on the embedded digits.",
    ]


def test_the_version_of_a_command_names_those_of_core_and_torch(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ssl-core-train", "--version"])
    run_command("ssl_core")
    version = metadata.version
    expected = f"ssl-core-train {version('ssl-core')}, ssl-core {version('ssl-core')}, torch {version('torch')}"
    assert capsys.readouterr().out == f"{expected}\n"


def test_other_command_lines_go_to_the_training(monkeypatch):
    given = []
    monkeypatch.setattr(sys, "argv", ["ssl-tiny-train", "--config", "smoke", "--data.source", "list"])
    monkeypatch.setattr(ssl_tiny.train, "main", lambda arguments, *, started: given.append((arguments, started)))
    before = time.monotonic()
    run_command("ssl_tiny")
    ((arguments, started),) = given
    assert arguments == ["--config", "smoke", "--data.source", "list"]
    assert before <= started <= time.monotonic()


@pytest.mark.slow
def test_importing_costs_little_and_listing_recipes_nothing():
    check_imports("ssl_tiny")
