"""Who may import whom: fails on an arrow that the architecture does not have."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from ssl_core.testing import finished_process

ROOT = Path(__file__).parents[3]
CORE = ROOT / "packages/core/src/ssl_core"

# Room -> rooms of ssl_core that it may import, besides itself; anyone may use what stands in ANYWHERE.
ANYWHERE = {
    "address",
    "lazy",
    "philox",
    "files",
    "given",
    "schedules",
    "step",
    "progress",
    "machine",
    "duration",
    "size",
}
ALLOWED = {
    "address": set(),
    "philox": {"ops"},
    "files": set(),
    "given": set(),
    "schedules": set(),
    "step": set(),
    "progress": set(),
    "machine": set(),
    "duration": set(),
    "size": set(),
    "console": set(),
    "allocator": set(),
    "distributed": set(),
    "folder": {"distributed"},
    "config": {"folder", "recipes"},
    "recipes": {"console"},
    "jpeg": set(),
    "doctor": {"ops", "jpeg"},
    "lazy": set(),
    "ops": {"_C"},
    "losses": {"ops", "distributed"},
    "nn": {"ops", "losses", "distributed"},
    "views": {"ops"},
    "data": {"views", "distributed", "jpeg"},
    "train": {"config", "distributed", "views"},
    "backbone": {"nn"},
    "evaluate": {"config", "folder", "data", "losses", "nn", "distributed", "views", "backbone", "train"},
    "detect": {"config", "folder", "data", "losses", "nn", "distributed", "views", "backbone", "train", "evaluate"},
    # From a command line to a run directory; nothing above imports these.
    "run": {"data", "nn", "distributed", "views", "backbone", "train", "evaluate"},
    "summary": {"ops", "distributed", "data", "train", "run"},
    "build": {"nn", "train", "run"},
    "trial": {"config", "distributed", "data", "nn", "train", "run", "build"},
    "auto": {"config", "distributed", "data", "nn", "views", "run", "build", "trial"},
    "budget": {"config", "distributed", "data", "evaluate", "train", "run", "build", "trial"},
    "report": {"data", "views", "backbone", "train", "evaluate"},
    "pretrain": {"allocator", "config", "folder", "data", "nn", "distributed", "views", "backbone", "train", "evaluate"}
    | {"report", "run", "summary", "build", "auto", "budget"},
    "command": {"config", "console", "folder", "distributed", "data", "train", "run", "pretrain"},
}
# These put the rooms together.
FREE = {"testing", "cli", "__init__", "__main__"}


def imported_modules(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            modules.add(node.module)
            if node.module == "ssl_core":
                modules |= {f"ssl_core.{alias.name}" for alias in node.names}
    return modules


def room(file: Path, package: Path) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sorted(CORE.rglob("*.py")), ids=lambda file: str(file.relative_to(CORE)))
def test_core_imports_only_along_the_arrows(file):
    here = room(file, CORE)
    if here in FREE:
        return
    used = {name.split(".")[1] for name in imported_modules(file) if name.startswith("ssl_core.")}
    assert used - {here} - ANYWHERE <= ALLOWED[here]


@pytest.mark.parametrize("folder", sorted(ROOT.glob("packages/*/src/*")), ids=lambda folder: folder.name)
def test_no_package_imports_a_method(folder):
    ours = {path.name for path in ROOT.glob("packages/*/src/*")}
    for file in folder.rglob("*.py"):
        used = {name.split(".")[0] for name in imported_modules(file)} & ours
        assert used <= {"ssl_core", folder.name}, file


def test_core_and_its_shared_checks_do_without_pytest():
    using = [file for file in CORE.rglob("*.py") if {"pytest", "_pytest"} & imported_modules(file)]
    assert not using


@pytest.mark.slow
def test_doctor_imports_little_more_than_torch():
    code = "import sys, torch; loaded = set(sys.modules); from ssl_core.__main__ import main; main()"
    code += "; print(*(set(sys.modules) - loaded))"
    done = finished_process([sys.executable, "-c", code, "doctor"])
    assert done.returncode == 0, done.stderr
    *_, modules = done.stdout.splitlines()
    assert not {"timm", "torchvision", "sklearn", "pyarrow", "jsonargparse", "torch._dynamo"} & set(modules.split())
    assert len(modules.split()) < 300


# What a package is imported as, where that is not its name.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "faiss": "faiss-cpu"}


@pytest.mark.parametrize("package", sorted(ROOT.glob("packages/*")), ids=lambda package: package.name)
def test_a_package_asks_for_all_that_it_imports(package):
    core, own = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (CORE.parents[1], package)
    )
    asked = {re.split(r"[\s\[<>=;]", part)[0] for project in (core, own) for part in asked_for(project)}
    used = {name.split(".")[0] for file in package.glob("src/**/*.py") for name in imported_modules(file)}
    used = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in used - sys.stdlib_module_names}
    # PyTorch brings triton, where there is one.
    assert used - {f"ssl-{package.name}", "ssl-core", "triton"} <= asked


def asked_for(project):
    extras = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(part for extra in extras.values() for part in extra)]


def test_no_shape_is_that_of_an_ndarray_with_a_dtype():
    # From Python 3.12 on jaxtyping refuses it, when the module is imported; the dtype is said already.
    files = ROOT.glob("packages/*/src/**/*.py")
    assert not [str(file) for file in files if re.search(r"\w\[NDArray\[[^]]*\], \"", file.read_text())]


def test_the_annotations_of_every_package_are_checked():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    (checked,) = (option.partition("=")[2] for option in options if option.startswith("--jaxtyping-packages"))
    assert {folder.name for folder in ROOT.glob("packages/*/src/*")} <= set(checked.split(","))
