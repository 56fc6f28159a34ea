"""The command ``ssl-sce-train``, which is also ``python -m ssl_sce``."""

from ssl_core.recipes import run_command


def main() -> None:
    """Train as the command line asks, or list the recipes."""
    run_command("ssl_sce")


if __name__ == "__main__":
    main()
