"""Recipes that a package ships, and its command, which lists them without importing PyTorch."""

import difflib
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path

from ssl_core.console import console
from ssl_core.machine import configure_openmp


def run_command(package: str) -> None:
    """The command of a method package: ``main`` of its module ``train``, its recipes or its version.

    Args:
        package: import name of the package, such as ``ssl_sce``; its recipes are in the folder ``recipes`` inside it.
    """
    started = time.monotonic()  # PyTorch, whose import takes seconds, comes later
    configure_openmp()
    arguments = sys.argv[1:]
    prog = f"{package.replace('_', '-')}-train"
    with console(prog):
        if "--config=list" in arguments or ("--config", "list") in pairwise(arguments):
            recipes = Path(import_module(package).__file__ or "").parent / "recipes"
            print("\n".join(f"{name:24} {line}" for name, line in recipe_headers(recipes)))
        elif "--version" in arguments:
            print(f"{prog} {versions(package, 'ssl_core', 'torch')}")
        else:
            import_module(f"{package}.train").main(arguments, started=started)


def versions(package: str, *others: str) -> str:
    """The version of a package, and names and versions of others, by their import names."""
    names = [name.replace("_", "-") for name in others]
    return ", ".join([metadata.version(package.replace("_", "-")), *(f"{n} {metadata.version(n)}" for n in names)])


def recipe_headers(recipes: Path) -> Iterator[tuple[str, str]]:
    """Name and first header line of each recipe in a folder, by name."""
    for file in sorted(recipes.glob("*.yaml")):
        yield file.stem, file.read_text().partition("\n")[0].lstrip("# ")


def recipe_path(name: str, recipes: Path) -> Path:
    """The file of a shipped recipe, or of a path given in its place.

    Raises:
        ValueError: if there is neither a recipe nor a file of this name.
    """
    shipped = recipes / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if (path := Path(os.path.expanduser(name))).is_file():
        return path
    if (saved := Path(name) / "config.yaml").is_file():
        raise ValueError(f"--config {name!r} is a run directory; its configuration is --config {str(saved)!r}")
    names = [known for known, _ in recipe_headers(recipes)]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"--config {name!r} is neither a file nor a shipped recipe; {hint}shipped: {', '.join(names)}")
