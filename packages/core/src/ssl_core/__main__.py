"""The command ``ssl-core``, which is also ``python -m ssl_core``."""

import sys

from ssl_core.console import console
from ssl_core.machine import configure_openmp
from ssl_core.recipes import versions


def main() -> None:
    """Run a command; ``doctor``, which needs no more than PyTorch and the ops, without importing the others."""
    configure_openmp()
    with console("ssl-core"):
        if sys.argv[1:] == ["--version"]:
            print(f"ssl-core {versions('ssl_core', 'torch')}")
        elif sys.argv[1:] == ["doctor"]:
            from ssl_core.doctor import doctor

            doctor()
        else:
            from ssl_core import cli

            cli.main()


if __name__ == "__main__":
    main()
