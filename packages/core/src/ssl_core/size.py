"""Sizes in bytes as people write them."""

import re

_UNITS = {"": 1, "B": 1, "KB": 1000}
_UNITS |= {f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate("kMGT", start=1)}
_UNITS |= {f"{prefix}iB": 2 ** (10 * power) for power, prefix in enumerate("KMGT", start=1)}


def bytes_of(text: str, name: str = "shard_size") -> int:
    """Number of bytes that a text says, such as 512MB (10^6 bytes each) or 1.5GiB (2^30).

    Args:
        text: number, and a unit or none.
        name: name of the setting, for the error.

    Raises:
        ValueError: for another text, or a size that is not positive.

    Example:
        >>> bytes_of("512MB"), bytes_of("1.5GiB")
        (512000000, 1610612736)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ValueError(f"{name} {text!r} is no size: give a number with a unit, such as 512MB or 1GiB")
    return int(float(match[1]) * _UNITS[match[2]])
