"""Names of a package that are imported when they are first used (PEP 562)."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def on_first_use(package: str, **names: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for the ``__init__`` of a package, so that importing the package costs no more than its use.

    Args:
        package: import name of the package, ``__name__`` there.
        names: public names of each module inside the package, with spaces between.

    Example:
        >>> get = on_first_use("ssl_core", schedules="scalar_schedule cosine_schedule")
        >>> get("cosine_schedule").__module__
        'ssl_core.schedules'
        >>> get("sine_schedule")
        Traceback (most recent call last):
        AttributeError: module 'ssl_core' has no attribute 'sine_schedule'
    """
    homes = {name: module for module, public in names.items() for name in public.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next use comes without this call
        return value

    return get
