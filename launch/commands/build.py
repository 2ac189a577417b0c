"""`commentree build`: makes a dataset of trees from sources of any size."""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any, get_args

from commentree.console import Console
from commentree.errors import UserError
from commentree.launch.reports import build_report
from commentree.launch.settings import beam_flags, flags
from commentree.tasks.config.preprocessing import Deleted, Orphans, TreeConfig

_EPILOG = """\
examples:
  a month of Reddit, comments and posts:
    commentree build --source RC_2015-01.zst RS_2015-01.zst --out data/january

  a folder of dumps, two subreddits, tests from the last months:
    commentree build --source dumps/ --out data/two --subreddits science politics \\
      --validation_after=2015-11-01 --test_after=2015-12-01

  trees of at least 5 comments of at least 3 words, in 4 GB of memory:
    commentree build --source 'dumps/*.zst' --out data/talk --memory=4GB \\
      --min_comments=5 --min_words=3

  the same as an Apache Beam pipeline, in 8 processes; options behind `--` are Beam's:
    commentree build --source dumps/ --out data/all --runner=DirectRunner -- \\
      --direct_running_mode=multi_processing --direct_num_workers=8

  tables, whose columns have names of their own:
    commentree build --source threads.parquet --out data/threads \\
      --columns id=comment_id parent=reply_to text=content

  labels from a file of their own:
    commentree build --source dumps/ --out data/stances --labels stances.csv \\
      --label_columns id=comment label=stance

  is what was copied whole?
    commentree build --check data/january

A build that was stopped, however it was, continues when the same command is given
again. The dataset is --out's folder 1.0.0, there when it is whole; FILES of a run, or
tfds.load("january", data_dir="data"), read it.
exit codes: 0 done, 2 a mistake of the user's, 74 the disk is full or refuses, 130
stopped by Ctrl-C.
"""

_UNITS_MB = {"MB": 1, "GB": 1024, "TB": 1024 * 1024}
_INTERRUPTED = 130


def _parser() -> argparse.ArgumentParser:
  from commentree.tasks.building.config import BuildConfig

  defaults = BuildConfig()
  parser = argparse.ArgumentParser(
    prog="commentree build",
    description="Make a dataset of trees from dumps and corpora of any size.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  main = parser.add_argument_group("what and where")
  main.add_argument(
    "--source", nargs="+", metavar="PATH", help="files, globs or folders to read"
  )
  main.add_argument(
    "--out", metavar="DIR", help="the dataset's folder, whose name becomes its own"
  )
  main.add_argument(
    "--check", metavar="DIR", help="compare a dataset with its checksums, and no more"
  )
  main.add_argument(
    "--format", metavar="NAME", help="of all files; told from each if left out"
  )
  main.add_argument(
    "--columns",
    nargs="+",
    default=(),
    metavar="ROLE=NAME",
    help="which columns of tables hold what, such as text=content; usual names are"
    " guessed and said (docs/data.md lists the roles)",
  )
  main.add_argument(
    "--label_from",
    metavar="WHERE",
    help="where ConvoKit corpora hold comments' labels: meta.KEY of utterances, or"
    " conversation.meta.KEY",
  )
  main.add_argument(
    "--labels",
    metavar="FILE",
    help="a table of ids and labels, which comments get in place of their own",
  )
  main.add_argument(
    "--label_columns",
    nargs="+",
    default=(),
    metavar="ROLE=NAME",
    help="which of its columns are id=, label= and, where an id counts only within a"
    " post, post=; usual names are guessed and said",
  )
  machine = parser.add_argument_group("the machine (the same bytes come out)")
  machine.add_argument(
    "--memory",
    type=_memory,
    metavar="SIZE",
    help="of all processes together, as 800MB or 2GB (default half of what is free)",
  )
  machine.add_argument(
    "--workers", type=_positive, metavar="N", help="processes (default one a core)"
  )
  machine.add_argument(
    "--runner",
    metavar="NAME",
    help="build with Apache Beam on this runner, such as DirectRunner; all its workers"
    " must see the sources and --out under the same paths",
  )
  splits = parser.add_argument_group("splits")
  for split, share in (
    ("validation", defaults.validation_share),
    ("test", defaults.test_share),
  ):
    splits.add_argument(
      f"--{split}_share",
      type=float,
      metavar="SHARE",
      default=share,
      help=f"of the trees, by a hash of their ids, to {split} (default {share})",
    )
  splits.add_argument(
    "--validation_after",
    type=_date,
    metavar="DATE",
    help="hold out trees begun then and later, instead of a share",
  )
  splits.add_argument(
    "--test_after",
    type=_date,
    metavar="DATE",
    help="of those, the ones begun then and later are the test split",
  )
  flags.add_number(splits, "--seed", defaults.seed, "of the shuffle")
  flags.add_number(
    splits, "--shard_mb", defaults.shard_mb, "text of a shard at most, in MB"
  )
  wanted = parser.add_argument_group("what is wanted (the rest is counted)")
  for flag, what in (("--subreddits", "only"), ("--exclude_subreddits", "all but")):
    wanted.add_argument(
      flag,
      nargs="+",
      default=(),
      metavar="NAME",
      help=f"{what} these; a file's path stands for its lines",
    )
  for flag, what in (
    ("--after", "trees begun then or later"),
    ("--before", "trees begun earlier"),
  ):
    wanted.add_argument(
      flag, type=_date, metavar="DATE", help=f"{what}, as 2015-01-31 (UTC)"
    )
  for flag, what in (
    ("--min_score", "comments of fewer votes are spliced out"),
    ("--min_words", "comments of fewer words are spliced out"),
    ("--max_words", "comments of more words are spliced out"),
    ("--min_chars", "comments of fewer characters are spliced out"),
    ("--max_chars", "comments of more characters are spliced out"),
    ("--max_comments", "trees of more comments are left out"),
  ):
    wanted.add_argument(flag, type=int, metavar="N", help=what)
  flags.add_number(
    wanted, "--min_comments", defaults.min_comments, "trees of fewer are left out"
  )
  flags.add_number(
    wanted,
    "--max_tree_comments",
    defaults.max_tree_comments,
    "trees for which more were read are left out: a tree must fit in memory",
  )
  odd = parser.add_argument_group("what is odd in a tree")
  odd.add_argument(
    "--deleted",
    choices=get_args(Deleted),
    default=defaults.trees.deleted,
    help="deleted comments: spliced out or kept as such (default %(default)s)",
  )
  odd.add_argument(
    "--orphans",
    choices=get_args(Orphans),
    default=defaults.trees.orphans,
    help="replies to what is missing: hung under the post or dropped (default"
    " %(default)s)",
  )
  odd.add_argument(
    "--target_post",
    action="store_true",
    help="keep posts without comments, too, for runs that predict posts",
  )
  return parser


def main(argv: Sequence[str]) -> int:
  """Builds a dataset, or checks one; returns the exit code.

  Raises:
    UserError: for anything the user can mend.
  """
  own, beam_options = beam_flags.split(argv)
  arguments = _parser().parse_args(own)
  if beam_options and not arguments.runner:
    raise UserError(
      f"{beam_options[0]}: options behind `--` are for --runner; give one"
    )
  console = Console(stderr=True)
  if arguments.check:
    return _check(pathlib.Path(arguments.check))
  for flag in ("source", "out"):
    if not getattr(arguments, flag):
      raise UserError(f"--{flag} is missing: see commentree build --help")

  from commentree.tasks.building import building, label_file, workers

  config = _config(arguments)
  labels = None
  if arguments.labels is not None:
    labels = label_file.open_file(
      arguments.labels, arguments.label_columns, config.trees
    )
  elif arguments.label_columns:
    raise UserError("--label_columns: is for --labels; give a file of labels")
  out = pathlib.Path(os.path.abspath(os.path.expanduser(arguments.out)))
  sources = building.list_sources(arguments.source, config, labels)
  for remark in building.remarks(sources, config, labels):
    console.print(remark)
  if arguments.runner:
    return _build_with_beam(
      sources, out, config, arguments, beam_options, labels, console
    )
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
  division = workers.divide(
    arguments.memory or _half_of_free_memory_mb(),
    arguments.workers or cores or os.cpu_count() or 1,
  )
  _warn_of_room(building.room_needed(sources), out, console)
  started = time.perf_counter()
  try:
    with (
      build_report.progress(console) as progress,
      workers.Workers(division.workers, progress.advance) as pool,
    ):
      built = building.build(sources, out, config, pool, division, progress, labels)
  except KeyboardInterrupt:
    console.print("stopped; the same command continues from here")
    return _INTERRUPTED
  if built.already:
    console.print("this dataset is built already")
  else:
    build_report.show(
      built.stats, time.perf_counter() - started, pool.peak_bytes, console
    )
  print(built.folder)
  return 0


def _build_with_beam(
  sources: Sequence[Any],
  out: pathlib.Path,
  config: Any,
  arguments: argparse.Namespace,
  options: Sequence[str],
  labels: Any,
  console: Console,
) -> int:
  for flag in ("memory", "workers"):
    if getattr(arguments, flag):
      raise UserError(f"--{flag}: is not for --runner; give Beam's own behind `--`")
  beam_flags.require("commentree build --runner")
  from commentree.tasks.building import beam_pipeline

  started = time.perf_counter()
  try:
    with (
      beam_flags.errors_in_one_line(),
      console.status(f"building with Apache Beam's {arguments.runner}"),
    ):
      built = beam_pipeline.build(
        sources, out, config, [f"--runner={arguments.runner}", *options], labels
      )
  except KeyboardInterrupt:
    console.print("stopped; the same command begins anew")
    return _INTERRUPTED
  if built.already:
    console.print("this dataset is built already")
  else:
    build_report.show(built.stats, time.perf_counter() - started, 0, console)
  print(built.folder)
  return 0


def _check(folder: pathlib.Path) -> int:
  from commentree.tasks.dataset_files import manifest

  found = manifest.check(folder)
  print(
    f"{folder}: whole: {found['files']:,} files, {found['bytes'] / 2**20:,.1f} MB,"
    f" {found['records']:,} trees"
  )
  return 0


def _config(arguments: argparse.Namespace) -> Any:
  from commentree.tasks.building.config import BuildConfig

  given = vars(arguments)
  fields = {name: given[name] for name in BuildConfig.__match_args__ if name in given}
  for name in ("subreddits", "exclude_subreddits"):
    fields[name] = _names(given[name])
  try:
    trees = TreeConfig(
      arguments.deleted,
      arguments.orphans,
      target_post=arguments.target_post,
      columns=tuple(arguments.columns),
      label_from=arguments.label_from,
    )
    return BuildConfig(**fields, trees=trees)
  except UserError as error:
    # The fields are called as the flags are.
    told = re.sub("^(Build|Tree)Config[.]", "", str(error))
    raise UserError(f"--{told}") from error


def _names(given: Sequence[str]) -> tuple[str, ...]:
  """Subreddits from names, lists of names with commas, and files of names."""
  names: set[str] = set()
  for value in given:
    if os.path.isfile(value):
      try:
        listed = pathlib.Path(value).read_text("utf-8").split()
      except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{value}: cannot be read as a list of names") from error
    else:
      listed = value.split(",")
    names.update(name.strip().lower().removeprefix("r/") for name in listed)
  return tuple(sorted(names - {""}))


def _memory(text: str) -> int:
  """MB from `800MB` or `2GB`."""
  match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MB|GB|TB)", text.strip(), re.IGNORECASE)
  if not match:
    raise argparse.ArgumentTypeError(f"{text!r} is no size; give it as 800MB or 2GB")
  return int(float(match[1]) * _UNITS_MB[match[2].upper()])


def _positive(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
  return int(text)


def _date(text: str) -> int:
  """Seconds since 1970 from a date, with a time or without; in UTC if not said."""
  try:
    parsed = datetime.datetime.fromisoformat(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(
      f"{text!r} is no date; give it as 2015-01-31 or 2015-01-31T12:00"
    ) from error
  if parsed.tzinfo is None:
    parsed = parsed.replace(tzinfo=datetime.UTC)
  return int(parsed.timestamp())


def _half_of_free_memory_mb() -> int:
  """Half of what the system says is free, or 2 GB where it does not say."""
  try:
    with open("/proc/meminfo") as file:
      facts = dict(line.split(":") for line in file)
    return int(facts["MemAvailable"].split()[0]) // 2048
  except (OSError, KeyError, ValueError):
    return 2048


def _warn_of_room(needed: int, out: pathlib.Path, console: Console) -> None:
  folder = out
  while not folder.exists():
    folder = folder.parent
  free = shutil.disk_usage(folder).free
  if free < needed:
    console.print(
      f"warning: {out}: this may take up to {needed / 2**20:,.0f} MB of disk while it"
      f" is at work, and {free / 2**20:,.0f} MB are free",
    )


if __name__ == "__main__":
  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
