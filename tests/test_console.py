"""What users wrote is printed as it stands, whatever Rich would make of it."""

import io
import pathlib
import re
import sys

from rich.table import Table
from rich.text import Text

from commentree import console as console_lib
from commentree.console import Console
from commentree.errors import UserError, printable
from commentree.launch import main
from commentree.training.cluster.coordination import host_log

ROOT = pathlib.Path(console_lib.__file__).parent
ODD = "a/m[/red] [bold]x[/bold] [v2] :cat: 12 'b' " + "long/" * 40


def test_lines_stand_as_they_are():
  stream = io.StringIO()
  Console(file=stream, width=40, force_terminal=True).print(ODD)
  assert stream.getvalue() == ODD + "\n"


def test_tables_and_their_titles_hold_text_as_it_is():
  stream = io.StringIO()
  table = Table("[/head]", title="[/title] :cat:")
  table.add_row("m[/red]:cat:")
  Console(file=stream, width=60).print(table)
  for shown in ("[/head]", "[/title] :cat:", "m[/red]:cat:"):
    assert shown in stream.getvalue()


def test_what_is_going_on_may_have_any_name():
  stream = io.StringIO()
  console = Console(file=stream, force_terminal=True)
  with console.status("caching m[/red]"):
    pass
  assert "caching m[/red]" in stream.getvalue()


def test_what_is_going_on_does_not_pile_up_in_a_notebooks_cell(monkeypatch):
  monkeypatch.delenv("COLUMNS", raising=False)
  monkeypatch.setenv("FORCE_COLOR", "1")
  stream = io.StringIO()
  console = Console(file=stream)
  with console.status("reading") as status:
    status.update("reading: 1,000 comments")
  assert not stream.getvalue()
  assert console.width == 120


def test_a_hosts_log_has_the_line_too(tmp_path):
  host_log.open_log(tmp_path, 0)
  try:
    host_log.HostConsole(chief=True, file=io.StringIO()).print(ODD)
  finally:
    host_log.close_log()
  assert ODD in (tmp_path / "host_0.log").read_text()


def test_what_moves_a_cursor_or_cannot_be_encoded_is_spelled_out():
  assert (
    printable("a\x1b[2Jb\u202ec\ud800\x9b\t\n") == r"a\x1b[2Jb\u202ec\ud800\x9b" "\t\n"
  )
  stream = io.StringIO()
  table = Table("\x1b[1A")
  table.add_row("\x1b[1A")
  console = Console(file=stream)
  console.print("\x1b[1A\udcff", table, Text("own"))
  assert "\x1b" not in stream.getvalue()
  stream.getvalue().encode()


def test_a_mistake_is_one_line_whatever_is_in_it(capsys):
  def fails(argv):
    raise UserError("runs/a[/red]\n\x1b[2Jb: \udcff")

  assert main.run_verb(fails, []) == 2
  assert capsys.readouterr().err == "commentree: runs/a[/red] \\x1b[2Jb: \\udcff\n"


def test_a_terminal_that_knows_few_characters_ends_nothing(monkeypatch):
  streams = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
  monkeypatch.setattr(sys, "stdout", streams[0])
  monkeypatch.setattr(sys, "stderr", streams[1])
  assert main.main(["ü\udcff"]) == 2
  streams[1].flush()
  assert rb"\xfc\udcff" in streams[1].buffer.getvalue()


def test_no_file_prints_by_another_console():
  another = re.compile(
    r"from rich\.console import .*\bConsole\b|\bfrom_markup\b|markup=True"
    r"|TextColumn\((?!.*markup=False)"
  )
  found = [
    str(path)
    for path in ROOT.rglob("*.py")
    if path != ROOT / "console.py"
    and not re.match(r"\.venv|tests/|build/", str(path.relative_to(ROOT)))
    and another.search(path.read_text())
  ]
  assert found == []


def test_a_table_in_a_file_is_as_wide_as_it_needs_unless_somebody_says(monkeypatch):
  monkeypatch.delenv("COLUMNS", raising=False)
  assert Console(file=io.StringIO()).width == 120
  assert Console(file=io.StringIO(), width=60).width == 60
  monkeypatch.setenv("COLUMNS", "100")
  assert Console(file=io.StringIO()).width == 100
