"""The cost of importing a package. This module imports little itself, since that is not counted."""

import sys
from importlib import import_module

from ssl_core.testing.process import finished_process, run_in_processes

_HEAVY = ["timm", "torchvision", "sklearn", "pyarrow", "tensorboard", "matplotlib", "torch._dynamo"]
# Run in a process of its own, without PyTorch.
_LIST = """
import sys
sys.argv = [{package!r}, "--config", "list"]
from {package}.__main__ import main
main()
print(*sys.modules)
"""


def check_imports(package: str) -> None:
    """Check that a package costs little more than PyTorch to import, and its list of recipes not even that.

    Modules are counted, not seconds: those that take seconds are imported where they are used.

    Args:
        package: import name of a package with recipes.

    Raises:
        AssertionError: naming modules that the list of recipes should not need.
        torch.multiprocessing.ProcessException: with the import that should wait, or the number of modules.
    """
    done = finished_process([sys.executable, "-c", _LIST.format(package=package)])
    assert done.returncode == 0, done.stderr
    listed = {"torch", "numpy", "yaml"} & set(done.stdout.splitlines()[-1].split())
    assert not listed, f"--config list imports {sorted(listed)}"
    run_in_processes(_import_public_names, (package,), processes=1)


def _import_public_names(rank: int, package: str) -> None:
    sys.modules |= dict.fromkeys(_HEAVY)  # type: ignore[arg-type]  # to import one of them is an error now, which shows who does
    loaded = set(sys.modules)
    module = import_module(package)
    for name in getattr(module, "__all__", ()):
        getattr(module, name)
    used = set(sys.modules) - loaded
    assert len(used) < 500, f"import {package} imports {len(used)} modules beyond torch's"
