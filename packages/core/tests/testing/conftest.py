import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import ssl_tiny.train


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """(old, new) -> module ``train`` of a copy of ssl_tiny in which old became new, in its code or recipe `smoke`."""

    def changed(old, new):
        folder = tmp_path / "changed" / "ssl_tiny"
        shutil.copytree(Path(ssl_tiny.train.__file__).parent, folder)
        files = [folder / "train.py", folder / "recipes" / "smoke.yaml"]
        assert sum(old in file.read_text() for file in files) == 1
        for file in files:
            file.write_text(file.read_text().replace(old, new))
        spec = importlib.util.spec_from_file_location("ssl_tiny.train", files[0])
        train = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "ssl_tiny.train", train)  # where dataclasses look
        spec.loader.exec_module(train)
        monkeypatch.setenv("PYTHONPATH", str(folder.parent), prepend=":")
        return train

    return changed
