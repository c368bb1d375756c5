"""Check the built site: internal links, images' descriptions, and tables."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Links, anchors, images and paragraphs of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.anchors, self.undescribed = [], {"", "top"}, []
        self.raw_tables, self.begins = [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        """Collect what one tag says."""
        self.begins = tag == "p"
        attributes = dict(attrs)
        self.anchors.update(attributes[k] for k in ("id", "name") if k in attributes)
        self.links += [attributes[k] for k in ("href", "src") if attributes.get(k)]
        if tag == "img" and not attributes.get("alt"):
            self.undescribed.append(attributes.get("src"))

    def handle_data(self, data: str) -> None:
        """Collect paragraphs that are the source of a table."""
        if self.begins and data.lstrip().startswith("| "):
            self.raw_tables.append(data.split("\n")[0])
        self.begins = False


def problems(site: Path) -> list[str]:
    """Each broken link, image that says not what it shows, and table left as text."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: image without alt: {src}" for src in page.undescribed]
        found += [f"{name}: table left as text: {row}" for row in page.raw_tables]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            target = path if not parts.path else target
            if not target.exists():
                found.append(f"{name}: no such file: {link}")
            elif (
                target in pages and unquote(parts.fragment) not in pages[target].anchors
            ):
                found.append(f"{name}: no such anchor: {link}")
    if not pages:
        found.append(f"no page in {site}")
    return found


def main() -> None:
    """Print the problems; exit with 1 if there are any."""
    site = Path(sys.argv[1]).resolve()
    found = problems(site)
    print(*found, sep="\n", end="\n" if found else "")
    number = len(list(site.rglob("*.html")))
    print(f"{number} pages, {len(found)} problems of links, images or tables")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
