"""Which options a user has set: where they do not fit the data they are refused, while a recipe's give way, said."""

from collections.abc import Collection


def is_given(given: Collection[str] | None, name: str) -> bool:
    """Whether an option was set, by itself or in a node.

    Args:
        given: options and nodes that were set; None: all.
        name: option.

    Example:
        >>> [is_given(["data.source", "evaluate"], name) for name in ("evaluate.k", "data.source", "data.root")]
        [True, True, False]
    """
    return given is None or any(name == each or name.startswith(f"{each}.") for each in given)
