"""`commentree inspect`: trees as the model sees them, on the terminal or as a page."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import Any, get_args

from commentree.console import Console
from commentree.errors import UserError
from commentree.launch.settings import library_noise
from commentree.tasks.config.objective import ObjectiveConfig, ObjectiveName
from commentree.tasks.config.preprocessing import (
  CommentLabelsConfig,
  DiscourseMarkersConfig,
  LabelsConfig,
  LongComments,
  MaskingConfig,
  PreprocessingConfig,
  SubtreeConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.inspection.views import InspectionConfig

_GENERATED, _FILES = "commentree_generated", "commentree_files"
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

  annotated threads with their labels, a corpus, a dump (see docs/data.md):
    commentree inspect --files cmv_modes/ convokit/ RC_2005-12.zst \\
      --vocabulary=trees.model

  one held-out tree, with the masks of the second pass over the data:
    commentree inspect --files=trees.jsonl.gz --vocabulary=trees.model \\
      --split=validation --tree_id=t3_7cqm1 --count=1 --epoch=1

  what a run that writes replies reads and predicts:
    commentree inspect --objective=clm

  short rows and small subtrees, in colour through a pager:
    FORCE_COLOR=1 commentree inspect --decoder_length=64 --encoder_length=64 \\
      --max_tree_size=16 --max_ancestors=4 | less -R

Masks are those of a run with the same data, settings and --seed.
exit codes: 0 done, 2 a mistake of the user's.
"""


class _PipedConsole(Console):
  """Leaves a reader that went away, as `| head` does, to `main.run_verb`."""

  def on_broken_pipe(self) -> None:
    raise


def _parser() -> argparse.ArgumentParser:
  subtrees, layout, view = SubtreeConfig(), ForestLayout(), InspectionConfig()
  parser = argparse.ArgumentParser(
    prog="commentree inspect",
    description="Show a few trees as the model sees them: drawn, cleaned, tokenised,"
    " masked, with the ancestors that each comment sees, and packed into rows.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )

  which = parser.add_argument_group("which trees")
  which.add_argument(
    "--task", metavar="NAME", help=f"{_GENERATED} (default), or {_FILES} for --files"
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
    "--vocabulary", metavar="MODEL", help="for --files, made by `commentree vocab`"
  )
  which.add_argument(
    "--held_out_share",
    type=float,
    default=0.1,
    metavar="X",
    help="share of the trees in --files that is the validation split (default"
    " %(default)s)",
  )
  which.add_argument(
    "--split",
    choices=("train", "validation"),
    default=view.split,
    help="(default %(default)s)",
  )
  which.add_argument("--tree_id", metavar="ID", help="begin at the tree of this id")
  _number(which, "--skip", view.skip, "trees to pass over")
  _number(which, "--count", view.count, "trees to show")

  how = parser.add_argument_group("as in which run")
  _number(how, "--seed", view.seed, "seed of the run, for the masks")
  _number(how, "--epoch", view.epoch, "pass over the data; each has its own masks")
  for side in ("encoder", "decoder"):
    _number(how, f"--{side}_length", 128, f"tokens in {side} rows")
  _number(how, "--decoder_rows", layout.decoder_rows, "decoder rows of a forest")
  _number(how, "--max_ancestors", layout.max_ancestors, "most ancestors seen")
  _number(how, "--max_tree_size", subtrees.max_tree_size, "most comments in a subtree")
  _number(
    how,
    "--max_comment_tokens",
    subtrees.max_comment_tokens,
    "tokens after which a comment is cut",
  )
  how.add_argument(
    "--long_comments",
    choices=get_args(LongComments),
    default=subtrees.long_comments,
    help="what is done with longer ones (default %(default)s)",
  )

  predicted = parser.add_argument_group("what is predicted")
  predicted.add_argument(
    "--objective",
    choices=get_args(ObjectiveName),
    default=ObjectiveConfig().name,
    help="see docs/objectives.md (default %(default)s)",
  )
  predicted.add_argument(
    "--languages",
    nargs="+",
    default=(),
    metavar="NAME",
    help="of comments and translations, as the data calls them, for --objective=tlm",
  )
  predicted.add_argument(
    "--whole_words", action="store_true", help="mask all tokens of a word together"
  )
  predicted.add_argument(
    "--discourse_markers",
    metavar="FILE",
    help="phrases to mask first, one a line; or 'english'",
  )

  predicted.add_argument(
    "--labels",
    nargs="+",
    default=(),
    metavar="NAME",
    help="of parts of comments, such as: claim premise; for --objective=tag",
  )
  predicted.add_argument(
    "--comment_labels",
    nargs="+",
    default=("none",),
    metavar=("SOURCE", "NAME"),
    help="where labels of whole comments come from (label, subreddit, deleted_next),"
    " and which there are; for --objective=classify",
  )

  output = parser.add_argument_group("output")
  output.add_argument(
    "--html", metavar="FILE", help="write a page there, instead of to the terminal"
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


def _number(parser: Any, flag: str, default: int, text: str) -> None:
  parser.add_argument(
    flag,
    type=int,
    default=default,
    metavar="N",
    help=f"{text} (default %(default)s)",
  )


def main(argv: Sequence[str]) -> int:
  """Shows trees; returns the exit code.

  Raises:
    UserError: for anything the user can mend.
  """
  arguments = _parser().parse_args(argv)
  data_config, view_config = _configs(arguments)

  # TensorFlow loads here, once the settings are sound.
  library_noise.load_tensorflow()
  from commentree.tasks.inspection import inspecting
  from commentree.tasks.seqio_tasks import registration, registry

  registration.register_tasks(data_config)
  task = registry.get_task(data_config.mixture_or_task_name)
  inspected = inspecting.inspect_trees(task, view_config)
  for remark in task.tree_source.read_counts.remarks():
    print(f"warning: {remark}", file=sys.stderr)
  if arguments.html:
    from commentree.tasks.inspection import html_page

    html_page.write(inspected, arguments.html)
    print(arguments.html)
    return 0

  from commentree.tasks.inspection import terminal

  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="replace")  # a pipe's encoding may be ASCII
  terminal.render(inspected, _PipedConsole())
  return 0


def _configs(arguments: argparse.Namespace) -> tuple[DataConfig, InspectionConfig]:
  task = arguments.task or (_FILES if arguments.files else _GENERATED)
  if task == _FILES and not arguments.files:
    raise UserError(f"--files is missing: the task {_FILES!r} needs it")
  if task != _FILES and (arguments.files or arguments.vocabulary):
    raise UserError(
      f"--files and --vocabulary are for the task {_FILES!r}, not {task!r}"
    )
  if arguments.format and not arguments.files:
    raise UserError("--format is for --files, which is missing")
  if arguments.files and not arguments.vocabulary:
    raise UserError(
      "--vocabulary is missing: give your model's, or make one with `commentree vocab"
      f" --input {arguments.files[0]} --output=trees.model`"
    )
  lengths = {"encoder": arguments.encoder_length, "decoder": arguments.decoder_length}
  layout = ForestLayout(
    decoder_rows=arguments.decoder_rows, max_ancestors=arguments.max_ancestors
  )
  source, *names = arguments.comment_labels
  data_config = DataConfig(
    mixture_or_task_name=task,
    task_feature_lengths=lengths,
    files=arguments.files,
    files_format=arguments.format,
    vocabulary=arguments.vocabulary,
    held_out_share=arguments.held_out_share,
    cache_dir=arguments.cache_dir,
    layout=layout,
    preprocessing=PreprocessingConfig(
      subtrees=SubtreeConfig(
        max_tree_size=arguments.max_tree_size,
        max_ancestors=arguments.max_ancestors,
        max_comment_tokens=arguments.max_comment_tokens,
        long_comments=arguments.long_comments,
      ),
      objective=ObjectiveConfig(arguments.objective, languages=arguments.languages),
      masking=MaskingConfig(whole_words=arguments.whole_words),
      discourse=DiscourseMarkersConfig(arguments.discourse_markers),
      labels=LabelsConfig(arguments.labels),
      comment_labels=CommentLabelsConfig(source, tuple(names)),
    ),
  )
  default = _MAX_COMMENTS_ON_PAGE if arguments.html else _MAX_COMMENTS_ON_TERMINAL
  view_config = InspectionConfig(
    split=arguments.split,
    count=arguments.count,
    skip=arguments.skip,
    tree_id=arguments.tree_id,
    seed=arguments.seed,
    epoch=arguments.epoch,
    lengths=lengths,
    layout=layout,
    max_comments=default if arguments.max_comments is None else arguments.max_comments,
  )
  return data_config, view_config


if __name__ == "__main__":
  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
