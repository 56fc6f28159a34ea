"""The documentation site, built by ``nox -s docs``.

Its source is the whole checkout, so that a link between two documents is the same here as in the repository.
"""

import ast
import itertools
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.util.logging import getLogger

logger = getLogger(__name__)
ROOT = Path(__file__).parents[1]

project = "ssl-core"
copyright = "the ssl-core developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "benchmarks/results/*.md", "packages/*/*.md"]

html_theme = "furo"
html_title = "Soft-contrastive pretraining"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]

highlight_language = "sh"  # a block without a language holds commands
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False


def public_names(package: str) -> list[str]:
    """The names that a package's ``__init__`` imports for others: ``import X as X``, at once or on first use."""
    tree = ast.parse(Path(import_module(package).__file__ or "").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in imports for alias in node.names if alias.name == alias.asname]


# What autodoc takes for the members of a module. It does not see those that are imported on first use before that.
PUBLIC = {}
for _file in ROOT.glob("packages/*/src/**/__init__.py"):
    _package = ".".join(_file.parent.relative_to(next(p for p in _file.parents if p.name == "src")).parts)
    if names := public_names(_package):
        PUBLIC[_package] = sys.modules[_package].__all__ = names
        for name in names:
            getattr(sys.modules[_package], name)


_SECTION = re.compile(r"(Args|Attributes|Example|Raises|Returns):$")
_LITERAL = re.compile(r"(``.*?``)")
_MARGIN = 100  # of a docstring's line, whose indentation is gone


def as_it_looks(_app: Any, _what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Let a docstring's text be what it looks like: an equation keeps its line, |x| and (n) are no markup.

    A line that ends although the next word would have fit ends on purpose: it becomes one of a line block.
    """
    for index, line in enumerate(lines):
        parts = _LITERAL.split(re.sub(r"^( *)\((\w+)\)", r"\1\\(\2)", line))
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[index] = "".join(parts)
    end = next((index for index, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    text = "\n".join(lines[:end])
    paragraphs = [_line_block(paragraph) for paragraph in re.split(r"\n{2,}", text.strip("\n"))]
    lines[:end] = [*"\n\n".join(paragraphs).split("\n"), ""]


def _line_block(paragraph: str) -> str:
    lines = paragraph.split("\n")
    on_purpose = [len(line) + len(after.partition(" ")[0]) < _MARGIN for line, after in itertools.pairwise(lines)]
    if not any(on_purpose) or any(line.startswith((" ", "=", "-", "*", ">>>")) for line in lines):
        return paragraph
    return "".join(
        f"{'| ' if new else '  '}{line}\n" for new, line in zip([True, *on_purpose], lines, strict=True)
    ).rstrip()


def find_missing(_app: Any, env: Any) -> None:
    """Warn of public functions and classes that no page shows."""
    shown = {name.rpartition(".")[2] for name in env.get_domain("py").objects}
    for package, names in PUBLIC.items():
        for name in names:
            if callable(getattr(sys.modules[package], name)) and name not in shown:
                logger.warning("%s.%s is on no page of the reference", package, name)


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("env-check-consistency", find_missing)
    app.connect("autodoc-process-docstring", as_it_looks, priority=400)  # before napoleon reads the sections
