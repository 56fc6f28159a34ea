from pathlib import Path

import pytest

from ssl_core.ops import cpp


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By day, only tests marked hypothesis run on instruction sets other than the one in use."""
    if not cpp.instruction_sets():
        return
    others = {*cpp.instruction_sets()} - {cpp.chosen_instruction_set()}
    for item in (item for item in items if item.path.is_relative_to(Path(__file__).parent)):
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        is_other = any(isinstance(value, str) and value.split(" ")[-1] in others for value in parameters)
        if is_other and not item.get_closest_marker("hypothesis"):
            item.add_marker("nightly")
