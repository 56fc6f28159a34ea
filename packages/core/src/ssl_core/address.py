"""Addresses of files elsewhere: what begins with a scheme, such as s3://bucket/photos."""

import re

_SCHEME = re.compile(r"\w[\w+.-]+://")
_WEB = re.compile(r"https?://")


def is_address(name: str) -> bool:
    """Whether a name begins with a scheme.

    Example:
        >>> is_address("s3://bucket/photos"), is_address("photos/1.png"), is_address("C:/photos")
        (True, False, False)
    """
    return _SCHEME.match(name) is not None


def is_of_web(name: str) -> bool:
    """Whether an address is one of a web server, which does not list what it has."""
    return _WEB.match(name) is not None
