"""docs/data.md: what it shows to copy works, and what it shows to come out does."""

import pathlib
import re
import subprocess

import pytest

from commentree.launch.main import main
from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import (
  cmv_modes,
  convokit,
  hacker_news,
  mail,
  oasst,
  reddit_api,
)
from commentree.tasks.readers.parsing import files, json_lines, json_records
from commentree.tasks.readers.tables import records
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "data.md"
EXAMPLES = re.findall(
  r"^###? ([^\n]+)\n\n```sh\n(.*?)^```\n\n```text\n(.*?)^```\n",
  PAGE.read_text(),
  re.DOTALL | re.MULTILINE,
)


def words(line):
  """Of a line of a table, regardless of the width of its columns."""
  return " ".join(re.sub(r"[│├└]", " ", line).split())


def test_every_format_has_an_example_and_a_row():
  page = PAGE.read_text()
  others = 1  # labels from a file
  assert len(EXAMPLES) == page.count("```sh") == len(readers.FORMATS) + others
  for format_ in readers.FORMATS:
    assert f"| `{format_.name}` |" in page


@pytest.mark.long
@pytest.mark.parametrize(
  ("command", "shown"), [e[1:] for e in EXAMPLES], ids=[e[0] for e in EXAMPLES]
)
def test_an_example_gives_what_the_page_shows(
  tmp_path, monkeypatch, capfd, command, shown
):
  """The shell runs it, but for our own verbs, which start sooner in this process."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("COLUMNS", "160")
  aside = r"""commentree() { printf '%s\0' "$@" $'\n' >> calls; }"""
  subprocess.run(["bash", "-e", "-c", f"{aside}\n{command}"], check=True, timeout=60)
  calls = pathlib.Path("calls").read_text().split("\0\n\0")[:-1]
  assert len(calls) == command.count("\ncommentree ") > 0
  for call in calls:
    assert main(call.split("\0")) == 0
  printed = {words(line) for text in capfd.readouterr() for line in text.splitlines()}
  for line in shown.splitlines():
    assert words(line) in printed


def test_every_fate_is_explained():
  page = PAGE.read_text()
  read_counts = {
    value
    for module in (
      comment_tree,
      files,
      json_lines,
      json_records,
      oasst,
      cmv_modes,
      convokit,
      hacker_news,
      mail,
      reddit_api,
      records,
    )
    for name, value in vars(module).items()
    if name.isupper() and not name.startswith(("_", "REPAIRED", "MORE", "REPLIES"))
    if isinstance(value, str) and name not in ("POST_PREFIX", "COMMENT_PREFIX")
  }
  assert len(read_counts) > 30
  assert [fate for fate in sorted(read_counts) if f"| `{fate}` |" not in page] == []


def test_the_format_made_up_on_the_page_reads(tmp_path, monkeypatch):
  (source,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.M)
  module: dict = {}
  exec(source, module)
  monkeypatch.setattr(readers, "FORMATS", (module["FORMAT"], *readers.FORMATS))
  path = tmp_path / "forum.tsv"
  path.write_text(
    "thread\tid\tparent\tauthor\ttext\n"
    "1\tb\ta\tbob\tBecause of the ads.\n"
    "1\ta\t\tann\tWhy is it so slow?\n"
    "1\tc\n"
  )
  read_counts = ReadCounts()
  (tree,) = readers.iter_trees(str(tmp_path), TreeConfig(), read_counts)
  assert [(c.id, c.parent) for c in tree.comments] == [("1", -1), ("a", 0), ("b", 1)]
  assert read_counts.comments == {
    comment_tree.KEPT: 2,
    comment_tree.DROPPED_NOT_OBJECT: 1,
  }
