import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from commentree.errors import UserError
from commentree.launch import main
from commentree.launch.commands import build
from commentree.tasks.building import workers
from commentree.tests.support.launch.build_processes import (
  children,
  command,
  resident_mb,
  start,
)
from commentree.tests.support.tasks import building_fixture, pushshift_dump

ROOM = ["--memory=600MB", "--workers=2"]
SETTINGS = ["--shard_mb=1", "--validation_share=0.2"]


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
  return pushshift_dump.write_small(tmp_path_factory.mktemp("dump"))


def run(*arguments):
  done = subprocess.run(command(*arguments), capture_output=True, text=True)
  return done.returncode, done.stdout, done.stderr


def flags(dump, out):
  return ["--source", dump, "--out", out, *ROOM, *SETTINGS]


@pytest.fixture(scope="module")
def whole(dump, tmp_path_factory):
  """A build that nothing happened to: its files, and what was told."""
  out = tmp_path_factory.mktemp("whole") / "forum"
  code, printed, told = run(*flags(dump, out))
  assert code == 0, told
  assert printed == f"{out / '1.0.0'}\n"
  return building_fixture.contents(out / "1.0.0"), told


def test_a_build_tells_what_became_of_all_and_how_fast(dump, whole):
  truth = json.loads((dump / "TRUTH").read_text())
  _, told = whole
  for kind, counts in truth.items():
    for fate, number in counts.items():
      row = next(x for x in told.splitlines() if x.startswith(kind) and fate in x)
      assert f" {number:,} " in row
  for words in ("comments/s", "MB/s of input", "MB of memory at most", "validation:"):
    assert words in told


# What appears when some, but not all, of a stage is done.
STAGES = ["parts/*.json", "parts/*.parquet", "shards/*.json", "version/*"]


@pytest.mark.parametrize("seed", [0])
def test_killed_at_any_moment_and_started_again_the_same_bytes_come_out(
  dump, whole, tmp_path, seed
):
  out = tmp_path / "forum"
  work = out / ".build"
  rng = random.Random(seed)
  kept = {}
  for stage in STAGES:
    process = start(*flags(dump, out))
    while not list(work.glob(stage)) and process.poll() is None:
      time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "1.0.0").exists() or stage == STAGES[-1]
    for path, inode in kept.items():
      assert not path.exists() or path.stat().st_ino == inode, "done again"
    kept.update({p: p.stat().st_ino for p in work.glob("*/*.json")})
  assert len(kept) >= 5
  code, _, told = run(*flags(dump, out))
  assert code == 0, told
  assert building_fixture.contents(out / "1.0.0") == whole[0]
  assert {path.name for path in out.iterdir()} == {"1.0.0", ".sources.json"}
  code, _, told = run(*flags(dump, out))
  assert code == 0
  assert "is built already" in told


def test_the_same_bytes_come_out_of_one_worker(dump, whole, tmp_path):
  out = tmp_path / "forum"
  code, _, told = run(*flags(dump, out), "--workers=1", "--memory=400MB")
  assert code == 0, told
  assert building_fixture.contents(out / "1.0.0") == whole[0]


def test_workers_end_with_the_command_however_that_ends(dump, tmp_path):
  process = start(*flags(dump, tmp_path / "forum"))
  while not list((tmp_path / "forum").glob(".build/parts/*")):
    assert process.poll() is None
    time.sleep(0.01)
  of_command = children(process.pid)
  assert len(of_command) >= 2
  process.kill()
  process.wait()
  end = time.monotonic() + 20
  while left := [pid for pid in of_command if pathlib.Path(f"/proc/{pid}").exists()]:
    if time.monotonic() > end:
      for pid in left:
        os.kill(pid, signal.SIGKILL)
      pytest.fail("workers go on without the command")
    time.sleep(0.05)


def test_ctrl_c_stops_a_build_and_says_that_it_goes_on(dump, tmp_path):
  process = start(*flags(dump, tmp_path / "forum"))
  while not list((tmp_path / "forum").glob(".build/parts/*")):
    assert process.poll() is None
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGINT)
  _, told = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "the same command continues from here" in told
  assert "Traceback" not in told


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--out=forum"], "--source is missing"),
    (["--source=x"], "--out is missing"),
    (["--source=missing.zst", "--out=forum"], "missing.zst: no such file"),
    (["--source={trees}", "--out={tmp}/My-Forum"], "try .*/my_forum$"),
    (["--source={trees}", "--out={tmp}/forum", "--format=x"], "format 'x': is not"),
    (["--source={trees}", "--out={tmp}/forum", "--memory=9MB"], "give at least"),
    (
      ["--source={trees}", "--out={tmp}/forum", "--validation_share=2"],
      "--validation_share = 2.0: must be a number from 0 to 1",
    ),
    (["--source={trees}", "--out={trees}/forum"], "cannot be written"),
    (["--check={tmp}"], "is no dataset made by"),
  ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, arguments, words):
  trees = tmp_path / "trees.jsonl"
  trees.write_text('{"id": "p", "comments": []}\n')
  given = [a.format(trees=trees, tmp=tmp_path) for a in arguments]
  assert main.main(["build", *given]) == UserError.exit_code
  told = capsys.readouterr().err
  assert told.count("\n") == 1
  with pytest.raises(UserError, match=words):
    build.main(given)


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--memory=much", "is no size; give it as 800MB"),
    ("--after=yesterday", "is no date; give it as 2015-01-31"),
    ("--workers=0", "is no whole number"),
  ],
)
def test_values_that_cannot_be_read_are_told_with_an_example(flag, words, capsys):
  with pytest.raises(SystemExit) as raised:
    build.main(["--source=x", "--out=y", flag])
  assert raised.value.code == 2
  assert words in capsys.readouterr().err


def test_subreddits_are_names_lists_and_files_of_names(tmp_path):
  path = tmp_path / "names.txt"
  path.write_text("Science\nr/AskReddit\n")
  assert build._names([str(path), "cats,Dogs", "science"]) == (
    "askreddit",
    "cats",
    "dogs",
    "science",
  )


def test_memory_is_divided_among_as_many_workers_as_it_is_enough_for():
  for memory_mb in (350, 500, 1_000, 5_000, 100_000):
    for number in (1, 2, 16):
      division = workers.divide(memory_mb, number)
      assert 1 <= division.workers <= number
      taken = division.workers * (division.share_mb + workers._WORKER_MB)
      assert taken + workers._MAIN_MB <= memory_mb
      assert division.share_mb >= workers._LEAST_SHARE_MB
  assert workers.divide(100_000, 16).workers == 16
  assert workers.divide(350, 16).workers == 1
  with pytest.raises(UserError, match="--memory=200MB: is too little"):
    workers.divide(200, 1)


def test_a_worker_that_is_killed_is_told_in_one_line():
  with (
    pytest.raises(UserError, match="a worker process was killed"),
    workers.Workers(1, lambda rows, size: None) as pool,
  ):
    pool.run(_kill, [()])


def _kill(report):
  os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_five_million_comments_are_built_in_a_gigabyte_whatever_kills_it(tmp_path):
  config = pushshift_dump.DumpConfig(comments=5_000_000, files=12)
  truth = pushshift_dump.Dump(config).write(tmp_path / "dump")
  wanted = ["--source", tmp_path / "dump", "--memory=1GB", "--workers=2"]
  out = tmp_path / "whole" / "forum"
  started, peak_mb = time.monotonic(), 0.0
  with open(tmp_path / "told", "w") as told:
    process = subprocess.Popen(
      command(*wanted, "--out", out), stdout=told, stderr=told, start_new_session=True
    )
  while process.poll() is None:
    peak_mb = max(peak_mb, resident_mb(process.pid))
    time.sleep(0.25)
  seconds = time.monotonic() - started
  assert process.returncode == 0
  assert peak_mb < 1_024
  stats = json.loads((out / "1.0.0" / "STATS.json").read_text())
  assert stats["read_counts"] == {
    k: dict(sorted(n.items())) for k, n in truth.as_dict().items()
  }
  print(f"{stats['comments'] / seconds:,.0f} comments/s, {peak_mb:,.0f} MB")

  rng = random.Random()
  other = tmp_path / "killed" / "forum"
  for _ in range(3):
    process = start(*wanted, "--out", other)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(rng.uniform(0.1, 0.6) * seconds)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
  code, _, words = run(*wanted, "--out", other)
  assert code == 0, words
  assert building_fixture.contents(other / "1.0.0") == building_fixture.contents(
    out / "1.0.0"
  )
