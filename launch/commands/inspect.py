"""`commentree inspect`: trees as the model sees them, on the terminal or as a page."""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from commentree.console import Console
from commentree.errors import UserError
from commentree.launch.settings import (
  early_checks,
  gin_cli,
  library_noise,
  run_folder,
)
from commentree.launch.settings.configurables import RunConfig
from commentree.tasks.config import mixture_config
from commentree.tasks.config.objective import ObjectiveName
from commentree.tasks.config.preprocessing import LongComments
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.inspection.views import InspectionConfig

_MAX_COMMENTS_ON_TERMINAL = 12
_MAX_COMMENTS_ON_PAGE = 150

_EPILOG = """\
examples:
  three generated trees (nothing else needed):
    commentree inspect

  three of your own, after `commentree vocab --input=trees.jsonl.gz
  --output=trees.model`, as a page to open in a browser:
    commentree inspect --files=trees.jsonl.gz --vocabulary=trees.model \\
      --html=trees.html

  what a run has read: its mixture, cleaning, subtrees, masks and forests:
    commentree inspect --model_dir=runs/mine

  one held-out tree of it, masked as in its evaluations:
    commentree inspect --model_dir=runs/mine --split=validation \\
      --tree_id=t3_7cqm1 --count=1

  what a run would read, by its command with `inspect` for `train`:
    commentree inspect --gin_file=runs/pretrain.gin \\
      --gin.MIXTURE_OR_TASK_NAME='"commentree_files"' \\
      --gin.FILES='"trees.jsonl.gz"' --gin.VOCABULARY='"trees.model"'

  the same with other masks, without a new run:
    commentree inspect --model_dir=runs/mine --gin.MaskingConfig.rate=0.3 --epoch=1

  annotated threads with their labels, a corpus, a dump (see docs/data.md):
    commentree inspect --files cmv_modes/ convokit/ RC_2005-12.zst \\
      --vocabulary=trees.model

  which comment above made this reply, by the losses of a run:
    commentree infer --model_dir=runs/mine --mode=score --attribution \\
      --input=trees.jsonl --output=scores.jsonl
    commentree inspect --model_dir=runs/mine --files=trees.jsonl \\
      --scores=scores.jsonl --html=trees.html

  what a run that writes replies reads and predicts:
    commentree inspect --objective=clm

  short rows and small subtrees, in colour through a pager:
    FORCE_COLOR=1 commentree inspect --decoder_length=64 --encoder_length=64 \\
      --max_tree_size=16 --max_ancestors=4 | less -R

Settings are those of --model_dir (MODEL_DIR/config.gin) or of --gin_file, else the
defaults of runs/common.gin; --gin.NAME=VALUE changes them, and the flags below change
them last. Without such changes, forests have the shape that the run of --model_dir
recorded; else it is chosen for the trees read here.
exit codes: 0 done, 2 a mistake of the user's.
"""

_DEFAULTS = "runs/inspect.gin"
# What runs/*.gin demand of their users, and showing trees does not need.
_NOT_NEEDED = ("MODEL_DIR = 'nowhere'", "TRAIN_STEPS = 1")

# The settings that a flag is short for.
_SETTINGS: Mapping[str, tuple[str, ...]] = {
  "files": ("DataConfig.files",),
  "format": ("DataConfig.files_format",),
  "columns": ("TreeConfig.columns",),
  "vocabulary": ("DataConfig.vocabulary",),
  "held_out_share": ("DataConfig.held_out_share",),
  "cache_dir": ("DataConfig.cache_dir",),
  "decoder_rows": ("ForestLayout.decoder_rows",),
  "max_ancestors": ("ForestLayout.max_ancestors", "SubtreeConfig.max_ancestors"),
  "max_tree_size": ("SubtreeConfig.max_tree_size",),
  "max_comment_tokens": ("SubtreeConfig.max_comment_tokens",),
  "long_comments": ("SubtreeConfig.long_comments",),
  "objective": ("ObjectiveConfig.name",),
  "languages": ("ObjectiveConfig.languages",),
  "whole_words": ("MaskingConfig.whole_words",),
  "discourse_markers": ("DiscourseMarkersConfig.file",),
  "labels": ("LabelsConfig.names",),
}


class _PipedConsole(Console):
  """Leaves a reader that went away, as `| head` does, to `main.run_verb`."""

  def on_broken_pipe(self) -> None:
    raise


def _parser() -> argparse.ArgumentParser:
  view = InspectionConfig()
  parser = argparse.ArgumentParser(
    prog="commentree inspect",
    description="Show a few trees as the model sees them: drawn, cleaned, tokenised,"
    " masked, with the ancestors that each comment sees, and packed into rows.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )

  run = parser.add_argument_group("the settings of a run")
  run_folder.add_folder_flags(run, required=False)
  gin_cli.add_gin_flags(run, required=False)

  which = parser.add_argument_group("which trees")
  which.add_argument(
    "--task", metavar="NAME", help="of a mixture, the task to show (default: each)"
  )
  which.add_argument(
    "--files",
    nargs="+",
    metavar="TREES",
    help="files of trees, globs or folders; or what `commentree build` made",
  )
  which.add_argument(
    "--format",
    metavar="NAME",
    help="of all --files; told from each if left out (see docs/data.md)",
  )
  which.add_argument(
    "--columns",
    nargs="+",
    metavar="ROLE=NAME",
    help="which columns of tables hold what, such as text=content; usual names are"
    " guessed (see docs/data.md)",
  )
  which.add_argument(
    "--vocabulary", metavar="MODEL", help="for --files, made by `commentree vocab`"
  )
  which.add_argument(
    "--held_out_share",
    type=float,
    metavar="X",
    help="share of the trees in --files that is the validation split",
  )
  which.add_argument(
    "--split",
    choices=("train", "validation"),
    default=view.split,
    help="(default %(default)s)",
  )
  which.add_argument("--tree_id", metavar="ID", help="begin at the tree of this id")
  which.add_argument(
    "--skip", type=int, default=view.skip, metavar="N", help="trees to pass over"
  )
  which.add_argument(
    "--count",
    type=int,
    default=view.count,
    metavar="N",
    help="trees to show (default %(default)s)",
  )

  how = parser.add_argument_group("as in which run (default: as the settings say)")
  how.add_argument(
    "--epoch",
    type=int,
    default=view.epoch,
    metavar="N",
    help="pass over the data, from 0; in training each has its own masks",
  )
  for flag, what in (
    ("--seed", "seed of the masks: of the run, or of its evaluations"),
    ("--encoder_length", "tokens in encoder rows"),
    ("--decoder_length", "tokens in decoder rows"),
    ("--decoder_rows", "decoder rows of a forest"),
    ("--max_ancestors", "most ancestors seen"),
    ("--max_tree_size", "most comments in a subtree"),
    ("--max_comment_tokens", "tokens after which a comment is cut"),
  ):
    how.add_argument(flag, type=int, metavar="N", help=what)
  how.add_argument(
    "--long_comments",
    choices=get_args(LongComments),
    help="what is done with longer ones",
  )

  predicted = parser.add_argument_group("what is predicted (default: likewise)")
  predicted.add_argument(
    "--objective", choices=get_args(ObjectiveName), help="see docs/objectives.md"
  )
  predicted.add_argument(
    "--languages",
    nargs="+",
    metavar="NAME",
    help="of comments and translations, as the data calls them, for --objective=tlm",
  )
  predicted.add_argument(
    "--whole_words",
    action="store_true",
    default=None,
    help="mask all tokens of a word together",
  )
  predicted.add_argument(
    "--discourse_markers",
    metavar="FILE",
    help="phrases to mask first, one a line; or 'english'",
  )
  predicted.add_argument(
    "--labels",
    nargs="+",
    metavar="NAME",
    help="of parts of comments, such as: claim premise; for --objective=tag",
  )
  predicted.add_argument(
    "--comment_labels",
    nargs="+",
    metavar=("SOURCE", "NAME"),
    help="where labels of whole comments come from (label, subreddit, deleted_next),"
    " and which there are; for --objective=classify",
  )

  output = parser.add_argument_group("output")
  output.add_argument(
    "--scores",
    metavar="FILE",
    help="what `commentree infer --mode=score --attribution` wrote of these trees (JSON"
    " Lines): shows what each ancestor counts",
  )
  output.add_argument(
    "--html",
    metavar="FILE",
    help="write a page there, of one task, instead of to the terminal",
  )
  output.add_argument(
    "--max_comments",
    type=int,
    metavar="N",
    help=f"most comments shown of a tree (default {_MAX_COMMENTS_ON_TERMINAL}, on a"
    f" page {_MAX_COMMENTS_ON_PAGE})",
  )
  output.add_argument(
    "--cache_dir",
    metavar="DIR",
    help="where the generated trees' vocabulary lies (default: the user's cache)",
  )
  return parser


def main(argv: Sequence[str]) -> int:
  """Shows trees; returns the exit code.

  Raises:
    UserError: for anything the user can mend.
  """
  others, overrides = gin_cli.split_overrides(argv)
  arguments = _parser().parse_args(others)
  run, changed = _load(arguments, overrides)
  early_checks.check_data(run.data)

  # TensorFlow loads here, once the settings are sound.
  library_noise.load_tensorflow()
  from commentree.tasks.inspection import inspecting
  from commentree.tasks.seqio_tasks import registration, registry

  registration.register_tasks(run.data)
  parts = _choose(arguments, registry.get_parts(run.data.mixture_or_task_name))
  as_recorded = arguments.model_dir is not None and not changed
  config = _view_config(arguments, run, as_recorded=as_recorded)
  console = _PipedConsole()
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="replace")  # a pipe's encoding may be ASCII
  for part in parts:
    inspected = inspecting.inspect_trees(part.task, config)
    for remark in part.task.tree_source.read_counts.remarks():
      print(f"warning: {remark}", file=sys.stderr)
    if arguments.scores:
      from commentree.tasks.inspection import scores

      inspected = scores.with_scores(inspected, arguments.scores)
    if arguments.html:
      from commentree.tasks.inspection import html_page

      html_page.write(inspected, arguments.html)
      print(arguments.html)
      return 0

    from commentree.tasks.inspection import terminal

    if part.share < 1:
      console.print(f"{float(part.share):.1%} of the subtrees of a run:", style="bold")
    terminal.render(inspected, console)
  return 0


def _load(
  arguments: argparse.Namespace, overrides: Sequence[str]
) -> tuple[RunConfig, bool]:
  """Returns the settings, and whether they are others than the run's.

  Raises:
    UserError: for anything the user can mend.
  """
  values = {name: getattr(arguments, name) for name in _SETTINGS}
  flags = [
    f"{field} = {value!r}"
    for name, value in values.items()
    if value is not None
    for field in _SETTINGS[name]
  ]
  if arguments.comment_labels is not None:
    source, *names = arguments.comment_labels
    flags += [
      f"CommentLabelsConfig.source = {source!r}",
      f"CommentLabelsConfig.names = {names!r}",
    ]
  if arguments.model_dir is not None:
    if arguments.gin_file:
      raise UserError(
        "--gin_file and --model_dir: give one of them; --gin.NAME=VALUE changes a run's"
        " settings"
      )
    run = run_folder.load(
      arguments.model_dir,
      overrides,
      trust_config=arguments.trust_config,
      say=_say,
      flags=flags,
    )
  else:
    _check_files(arguments)
    needed = gin_cli.still_needed(_NOT_NEEDED, overrides)
    if arguments.files and not arguments.gin_file:
      needed.append(f"MIXTURE_OR_TASK_NAME = {mixture_config.FILES!r}")
    run = gin_cli.load(
      [_DEFAULTS, *arguments.gin_file],
      [*needed, *overrides],
      arguments.gin_search_paths,
      flags,
    )
  _check_reads_files(arguments, run.data)
  given = {
    side: getattr(arguments, f"{side}_length") for side in ("encoder", "decoder")
  }
  given = {side: length for side, length in given.items() if length is not None}
  lengths = {**run.data.task_feature_lengths, **given}
  data = dataclasses.replace(run.data, task_feature_lengths=lengths)
  changed = bool(overrides or flags or given)
  return dataclasses.replace(run, data=data), changed


def _check_files(arguments: argparse.Namespace) -> None:
  """Checks the flags of files where no run says which and of which vocabulary."""
  if arguments.gin_file:
    return
  if arguments.format and not arguments.files:
    raise UserError("--format is for --files, which is missing")
  if arguments.files and not arguments.vocabulary:
    raise UserError(
      "--vocabulary is missing: give your model's, or make one with `commentree vocab"
      f" --input {arguments.files[0]} --output=trees.model`"
    )


def _check_reads_files(arguments: argparse.Namespace, data: DataConfig) -> None:
  """Raises UserError if there are `--files`, and no task reads them."""
  name = data.mixture_or_task_name
  sources = {member.source for member in data.members()} or {name}
  if arguments.files and mixture_config.FILES not in sources:
    raise UserError(
      f"--files: the task {name!r} reads none; add"
      f" --gin.MIXTURE_OR_TASK_NAME='\"{mixture_config.FILES}\"'"
    )


def _choose(arguments: argparse.Namespace, parts: Sequence[Any]) -> Sequence[Any]:
  """Returns the tasks to show, of those that the run mixes."""
  names = ", ".join(part.task.name for part in parts)
  if arguments.task is not None:
    parts = [part for part in parts if part.task.name == arguments.task]
    if not parts:
      raise UserError(f"--task={arguments.task}: no such task; there are {names}")
  if arguments.html and len(parts) > 1:
    raise UserError(f"--html: a page shows one task; choose it by --task: {names}")
  return parts


def _view_config(
  arguments: argparse.Namespace, run: RunConfig, *, as_recorded: bool
) -> InspectionConfig:
  seed = arguments.seed
  if seed is None:
    in_training = arguments.split == "train"
    seed = run.train.random_seed if in_training else run.data.eval_seed
  most = _MAX_COMMENTS_ON_PAGE if arguments.html else _MAX_COMMENTS_ON_TERMINAL
  layout = run.data.layout
  if as_recorded:
    layout = _recorded_layout(layout, arguments.model_dir)
  return InspectionConfig(
    split=arguments.split,
    count=arguments.count,
    skip=arguments.skip,
    tree_id=arguments.tree_id,
    seed=seed,
    epoch=arguments.epoch,
    lengths=run.data.task_feature_lengths,
    layout=layout,
    max_comments=most if arguments.max_comments is None else arguments.max_comments,
  )


def _recorded_layout(layout: ForestLayout, model_dir: str) -> ForestLayout:
  """Returns the layout with rows and slots as the run chose them from all its data."""
  from commentree.training.checkpointing import run_record, storage

  facts = run_record.recorded_facts(storage.as_path(model_dir))
  fields = [field.name for field in dataclasses.fields(layout)]
  recorded = {
    name: facts[f"forest.{name}"] for name in fields if f"forest.{name}" in facts
  }
  return dataclasses.replace(layout, **recorded)


def _say(line: str) -> None:
  print(f"commentree: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
