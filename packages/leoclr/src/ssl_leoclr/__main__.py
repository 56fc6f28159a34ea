"""The command ``ssl-leoclr-train``, which is also ``python -m ssl_leoclr``."""

from ssl_core.recipes import run_command


def main() -> None:
    """Train as the command line asks, or list the recipes."""
    run_command("ssl_leoclr")


if __name__ == "__main__":
    main()
