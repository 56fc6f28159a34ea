"""The options that a user has set: they are refused where they do not fit the data, while a recipe's give way."""

from collections.abc import Collection


def is_given(given: Collection[str] | None, name: str) -> bool:
    """Whether an option was set, by itself, in a node, or in part, as ``encoder.options`` is by one of them.

    Args:
        given: options and nodes that were set; None is all.
        name: dotted key of the option.

    Example:
        >>> given = ["data.source", "evaluate", "optim.lr"]
        >>> [is_given(given, name) for name in ("evaluate.k", "data.source", "optim", "data.root")]
        [True, True, True, False]
    """
    return given is None or any(
        f"{name}.".startswith(f"{each}.") or f"{each}.".startswith(f"{name}.") for each in given
    )
