"""The command ``ssl-core``, which is also ``python -m ssl_core``."""

import sys


def main() -> None:
    """Run a command; ``doctor``, which needs no more than PyTorch and the ops, without importing the others."""
    if sys.argv[1:] == ["doctor"]:
        from ssl_core.doctor import doctor

        doctor()
    else:
        from ssl_core import cli

        cli.main()


if __name__ == "__main__":
    main()
