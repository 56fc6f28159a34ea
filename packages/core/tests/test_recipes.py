import sys
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
    monkeypatch.setattr(ssl_tiny.train, "main", given.append)
    run_command("ssl_tiny")
    assert given == [["--config", "smoke", "--data.source", "list"]]


@pytest.mark.slow
def test_importing_costs_little_and_listing_recipes_nothing():
    check_imports("ssl_tiny")
