"""The documentation as a site: it builds without a warning; dead links and pages that nothing leads to are refused."""

import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def build(docs: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", docs, out]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_documentation_builds_without_a_warning_and_its_first_page_lists_the_others(tmp_path):
    built = build(DOCS, tmp_path)
    assert built.returncode == 0, built.stderr
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    pages = {page.stem for page in DOCS.glob("*.md")}
    assert all(f'href="{page}.html"' in first for page in pages - {"README"})
    assert {page.stem for page in tmp_path.glob("*.html")} == pages | {"index", "genindex", "search"}


def test_what_leads_nowhere_and_what_nothing_leads_to_is_refused(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(DOCS / "conf.py", docs)
    shutil.copy(DOCS.parent / "pyproject.toml", tmp_path)
    good = "[page](page.md), [heading](page.md#the-second), [outside](../pyproject.toml)"
    bad = ("absent.md", "page.md#the-third", "../absent.py")
    (docs / "README.md").write_text(f"# First\n\n{good}\n" + "".join(f"\n[x]({link})\n" for link in bad))
    (docs / "page.md").write_text("# Page\n\n## The second\n")
    (docs / "alone.md").write_text("# Alone\n")
    built = build(docs, tmp_path / "site")
    assert built.returncode == 1
    warnings = [line for line in built.stderr.splitlines() if "WARNING" in line]
    for part in ("absent.md", "the-third", "../absent.py", "alone.md"):
        assert any(part in line for line in warnings), part
    assert not any("the-second" in line or "pyproject.toml" in line for line in warnings)
