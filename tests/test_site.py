"""The site has every page once, and every link that a page has leads somewhere.

`make site` fails by a link that it cannot follow, too; this takes none of its packages.
"""

import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def pages_of(nav):
  for entry in nav:
    if isinstance(entry, str):
      yield entry
    else:
      for below in entry.values():
        yield from pages_of(below)


def test_every_page_is_in_the_navigation_once():
  nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
  there = {path.name for path in DOCS.glob("*.md")} | {"index.md", "contributing.md"}
  there |= {f"notebooks/{path.stem}.md" for path in DOCS.glob("notebooks/*.py")}
  assert sorted(pages_of(nav)) == sorted(there)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(page):
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
  links = re.findall(r"\[[^\]]*\]\((?![a-z]+:|#)([^)#\s]+)", text)
  assert [link for link in links if not (page.parent / link).exists()] == []
