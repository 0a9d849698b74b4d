"""Sphinx's settings: `make docs` builds the pages of this folder into site/.

The pages are plain Markdown, which GitHub shows as it is. Sphinx needs two things beside that, which are added to their
text as it is read: a table of contents, in the order of the links in README.md, and a mark on links that leave this
folder. Such a link stays relative, since site/ lies beside docs/. For a site published elsewhere, the environment
variable REPOSITORY is the address of the repository's page, and these links lead there.
"""

import os
import re
import shutil
import tomllib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).parent
REPOSITORY = os.environ.get("REPOSITORY")
ABOVE = f"{REPOSITORY.rstrip('/')}/blob/main" if REPOSITORY else ".."
INSIDE = re.compile(r"\]\((\w+)\.md\)")
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)(#[^)]*)?\)")

project = "Rotary Foundry"
release = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
extensions = ["myst_parser"]
root_doc = "README"
exclude_patterns = ["results"]  # parts of status.md
myst_heading_anchors = 6
myst_enable_extensions = ["attrs_inline"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False


def setup(app: Sphinx) -> None:
    app.connect("source-read", complete)
    app.connect("build-finished", name_the_first_page)


def complete(app: Sphinx, page: str, text: list[str]) -> None:
    """Add to a page's text what Sphinx needs and GitHub would show."""

    def marked(link: re.Match) -> str:
        if not (DOCS.parent / link[1]).exists():
            logging.getLogger(__name__).warning("a link leads to no file: ../%s", link[1], location=page)
        return f"]({ABOVE}/{link[1]}{link[2] or ''}){{.external}}"

    text[0] = OUTSIDE.sub(marked, text[0])
    if page == root_doc:
        pages = "\n".join(dict.fromkeys(INSIDE.findall(text[0])))
        text[0] += f"\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def name_the_first_page(app: Sphinx, error: Exception | None) -> None:
    """Copy the first page to index.html, which a server shows for a folder."""
    if error is None:
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")
