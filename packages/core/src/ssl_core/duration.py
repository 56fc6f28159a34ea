"""Times as people write and say them."""

import re

_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def seconds_of(text: str) -> float:
    """A time such as ``2h``, ``45m``, ``600s`` or ``1h30m`` in seconds.

    Raises:
        ValueError: if it is none, or not positive.

    Example:
        >>> seconds_of("1h30m")
        5400.0
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise ValueError(f"{text!r} is no time; write it as 2h, 45m, 600s or 1h30m")
    return seconds


def duration(seconds: float) -> str:
    """Seconds in the unit in which a person would say them.

    Example:
        >>> duration(90.0), duration(400.0)
        ('90 s', '6.7 min')
    """
    for unit, length_s in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.1f} {unit}"
    return f"{seconds:.0f} s"
