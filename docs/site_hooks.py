"""mkdocs' hooks: pages of notebooks and of files beside docs/, links to files names.

README.md is the site's first page and CONTRIBUTING.md one of the last. Their links are
as the repository shows them, so here they are written anew; a link to what is not there
is a warning, with which `mkdocs build --strict` fails.
"""

from __future__ import annotations

import logging
import pathlib
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}

log = logging.getLogger("mkdocs.hooks.commentree")
_LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
  """Adds the pages."""
  for source, page in PAGES.items():
    text = (ROOT / source).read_text()
    files.append(File.generated(config, page, content=text))
  for source in sorted(NOTEBOOKS.glob("*.py")):
    page = f"notebooks/{source.stem}.md"
    files.append(File.generated(config, page, content=page_of(source.read_text())))
  return files


def page_of(notebook: str) -> str:
  """Returns a notebook, in jupytext's format `percent`, as Markdown."""
  _, *cells = re.split(r"^# %%(.*)\n", notebook, flags=re.MULTILINE)
  parts = []
  for kind, cell in zip(cells[::2], cells[1::2]):
    text = re.sub(r"^# ?", "", cell, flags=re.MULTILINE).strip()
    if kind == " [markdown]":
      parts.append(text)
    elif kind == ' language="bash"':
      parts.append(f"```sh\n{text}\n```")
    else:
      parts.append(f"```python\n{cell.strip()}\n```")
  return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """Writes the links of a page anew."""
  name = page.file.src_uri
  sources = {to: source for source, to in PAGES.items()}
  folder = posixpath.dirname(sources.get(name, f"docs/{name}"))

  def link(found: re.Match[str]) -> str:
    text, target, anchor = found.groups(default="")
    path = posixpath.normpath(posixpath.join(folder, target))
    if not (ROOT / path).exists():
      log.warning("%s: there is no %s", name, path)
    if path in PAGES:
      return f"[{text}]({PAGES[path]}{anchor})"
    if path.startswith("docs/notebooks/"):
      path = path.removesuffix(".py") + ".md"
    if path.startswith("docs/") and not path.endswith(".py"):
      return f"[{text}]({path.removeprefix('docs/')}{anchor})"
    # A file that is no page: the site knows no place where it could be read.
    return f"`{path}`"

  parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
  return "".join(
    part if part.startswith("```") else _LINK.sub(link, part) for part in parts
  )
