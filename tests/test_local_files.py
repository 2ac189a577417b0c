"""Local files are whole or not there, and one process holds a lock."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from commentree import local_files
from commentree.errors import StorageError, UserError, refused_write
from commentree.tasks.preparation import records
from commentree.tasks.vocabulary import vocabulary_files


@pytest.mark.parametrize("sole_writer", [True, False])
def test_a_file_is_as_before_until_it_is_whole(tmp_path, sole_writer):
  path = tmp_path / "file"
  local_files.write_bytes(path, b"before", sole_writer=sole_writer)

  def break_off():
    with local_files.draft(path, sole_writer=sole_writer) as written:
      written.write_bytes(b"half")
      assert path.read_bytes() == b"before"
      raise RuntimeError

  with pytest.raises(RuntimeError):
    break_off()
  assert path.read_bytes() == b"before"
  with local_files.draft(path, sole_writer=sole_writer) as written:
    written.write_bytes(b"after")
  assert path.read_bytes() == b"after"
  assert os.listdir(tmp_path) == ["file"]


def test_writers_at_the_same_time_do_not_write_into_each_others_drafts(tmp_path):
  path = tmp_path / "file"
  with local_files.draft(path, sole_writer=False) as first:
    first.write_bytes(b"first")
    local_files.write_bytes(path, b"second", sole_writer=False)
  assert path.read_bytes() == b"first"


def test_what_a_kill_left_of_a_sole_writer_is_replaced(tmp_path):
  path = tmp_path / "file"
  with local_files.draft(path) as written:
    name = written
    written.write_bytes(b"")
  name.write_bytes(b"left by a kill")
  local_files.write_bytes(path, b"whole")
  assert os.listdir(tmp_path) == ["file"]


def test_a_folder_appears_whole_and_never_over_another(tmp_path):
  path = tmp_path / "above" / "folder"

  def write(text, error=None):
    with local_files.draft_folder(path) as written:
      (written / "file").write_text(text)
      if error is not None:
        raise error

  with pytest.raises(RuntimeError):
    write("half", RuntimeError())
  assert os.listdir(path.parent) == []
  write("whole")
  with pytest.raises(OSError, match="not empty"):
    write("another")
  assert (path / "file").read_text() == "whole"
  assert os.listdir(path.parent) == ["folder"]


def test_a_lock_is_held_by_one_and_ends_with_its_process(tmp_path):
  path = tmp_path / "lock"
  code = (
    "import sys, time; from commentree import local_files\n"
    "with local_files.lock(sys.argv[1], wait=False) as held:\n"
    "  print(held, flush=True); time.sleep(60)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout.readline() == "True\n"
    with pytest.raises(BlockingIOError), local_files.lock(path, wait=False):
      pass
  finally:
    process.kill()
    process.wait()
  with local_files.lock(path, wait=True) as held:
    assert held


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch):
  def refuse(file, flags):
    raise OSError(errno.ENOLCK, "no locks available")

  monkeypatch.setattr(local_files.fcntl, "flock", refuse)
  with local_files.lock(tmp_path / "lock", wait=False) as held:
    assert not held


@pytest.mark.parametrize(
  ("code", "kind"),
  [
    (errno.ENOSPC, StorageError),
    (errno.EIO, StorageError),
    (errno.EACCES, UserError),
    (errno.ENOTDIR, UserError),
  ],
)
def test_a_full_disk_is_the_storages_and_a_wrong_folder_the_users(code, kind):
  error = refused_write(OSError(code, "refused"), "x: cannot be written")
  assert type(error) is kind


def test_on_a_full_disk_vocabularies_and_prepared_data_end_as_checkpoints_do(
  tmp_path, monkeypatch
):
  def full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(local_files, "sync", full)
  with pytest.raises(StorageError, match="words: cannot be written") as told:
    vocabulary_files.write(tmp_path / "words", b"content")
  assert told.value.exit_code == 74
  with (
    pytest.raises(StorageError, match="prepared: cannot write prepared data"),
    records.draft(tmp_path / "prepared"),
  ):
    full(tmp_path)
  assert os.listdir(tmp_path) == []
