"""Check that every link inside a built site leads somewhere: ``python docs/check_links.py --site FOLDER``."""

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page has (``ids``) and what it asks for (``links``)."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids, self.links = {""}, set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser for each tag."""
        values = dict(attrs)
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        self.links |= {values[name] for name in ("href", "src") if values.get(name)}


def broken_links(site: Path) -> list[str]:
    """Links to files or places that are not there, each with its page."""
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    broken = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            fragment = unquote(parts.fragment)
            if not target.is_file() or (target in pages and fragment not in pages[target].ids):
                broken.append(f"{file.relative_to(site.resolve())}: {link}")
    return sorted(broken)


def main() -> None:
    """Print broken links, and fail if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, required=True)
    broken = broken_links(parser.parse_args().site)
    sys.exit("\n".join(broken) or 0)


if __name__ == "__main__":
    main()
