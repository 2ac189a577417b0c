from __future__ import annotations

import io
import logging
import pathlib

import pytest
from rich.table import Table

from commentree.console import Console
from commentree.errors import UserError
from commentree.tests.support.consoles import printed
from commentree.training.cluster.coordination import host_log
from commentree.training.cluster.coordination.host_log import HostConsole


def keep(folder, index: int = 0):
  return host_log.kept(str(folder), "unused", index, Console(file=io.StringIO()))


def test_host_0_alone_prints_and_every_host_logs(tmp_path):
  shown = {}
  for index in (0, 1):
    console = HostConsole(chief=index == 0, file=io.StringIO())
    table = Table("column")
    table.add_row("cell")
    with keep(tmp_path, index):
      console.print("said [not markup]", markup=False)
      console.print(table)
    shown[index] = printed(console)
    log = (tmp_path / f"host_{index}.log").read_text()
    assert "INFO said [not markup]\n" in log
    assert "cell" in log
  assert "said [not markup]" in shown[0]
  assert "cell" in shown[0]
  assert shown[1] == ""


def test_a_log_goes_on_where_the_last_start_ended_it(tmp_path):
  with keep(tmp_path):
    pass
  with pytest.raises(UserError), keep(tmp_path):
    raise UserError("a mistake")
  with pytest.raises(ValueError, match="a defect"), keep(tmp_path):
    raise ValueError("a defect")
  with pytest.raises(SystemExit), keep(tmp_path):
    raise SystemExit(143)
  log = (tmp_path / "host_0.log").read_text()
  assert log.count("INFO start: ") == 4
  for line in ("end", "end: exit code 2", "end: exit code 143"):
    assert f"INFO {line}\n" in log
  assert "ERROR a mistake\n" in log
  assert "Traceback" in log
  assert "ValueError: a defect" in log


def test_what_libraries_warn_of_is_logged(tmp_path):
  with keep(tmp_path):
    logging.getLogger("some.package").warning("careful")
  logging.getLogger("some.package").warning("too late")
  log = (tmp_path / "host_0.log").read_text()
  assert "WARNING careful\n" in log
  assert "too late" not in log


def test_a_log_lies_in_the_run_s_folder_if_that_is_local(tmp_path):
  assert host_log.folder(None, str(tmp_path)) == tmp_path / "logs"
  assert host_log.folder(None, "gs://bucket/run") == pathlib.Path("logs").absolute()
  assert host_log.folder(str(tmp_path / "here"), "gs://b/run") == tmp_path / "here"


def test_a_folder_that_cannot_be_written_to_matters_only_if_asked_for(tmp_path):
  (tmp_path / "logs").write_text("a file, not a folder")
  console = Console(file=io.StringIO(), width=200)
  with host_log.kept(None, str(tmp_path), 0, console):
    console.print("continues")
  first, second = printed(console).splitlines()
  assert first.startswith("no log is kept: ")
  assert second == "continues"
  refused = pytest.raises(UserError, match=r"^--log_dir=.*: cannot write host_0\.log")
  with refused, host_log.kept(str(tmp_path / "logs"), "unused", 0, console):
    pass


def test_stacks_go_to_the_log(tmp_path):
  with keep(tmp_path):
    host_log.dump_stacks()
  assert "test_stacks_go_to_the_log" in (tmp_path / "host_0.log").read_text()
