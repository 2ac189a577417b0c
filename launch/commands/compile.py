"""`commentree compile`: what a run takes on a TPU slice, asked of the TPU compiler."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from commentree.launch.settings import gin_cli
from commentree.launch.settings.typical_forests import COMMENT_TOKENS

_EPILOG = """\
examples:
  does the base model's training fit 16 chips of v5e, and how fast is it?
    commentree compile --gin_file=models/base.gin --topology=v5e:4x4

  your own run's settings, on two slices of v5p:
    commentree compile --gin_file=runs/mine.gin --topology=v5p-128 --num_slices=2 \\
      --gin.BATCH_SIZE=256 --gin_file=partitioning/fsdp.gin

  the fastest of batch sizes, remat policies and partitionings that fit:
    commentree compile --gin_file=models/xl.gin --topology=v5e-256 --search

  evaluation and prediction too, for a program to read:
    commentree compile --gin_file=models/base.gin --topology=v6e-8 \\
      --program=train,eval,infer --json=-

slices: v2:4x4 … v5e:16x16, v4:4x4x4, tpu7x:2x2x1 (chips along each dimension), or
Google's names: v5e-256 and v6e-256 count chips, v4-128, v5p-128 and tpu7x-128 cores.
Needs libtpu (pip install 'commentree[tpu]'), no TPU and no network. No data is read:
comments are taken to be --comment_tokens long, unless ForestLayout is set.
exit codes: 0 all fits, 2 something does not, or a mistake of the user's.
"""

_DEFAULTS = "runs/compile.gin"
# What runs/*.gin demand of their users, and compiling does not need.
_NOT_NEEDED = (
  "MODEL_DIR = 'nowhere'",
  "MIXTURE_OR_TASK_NAME = 'none'",
  "TRAIN_STEPS = 100000",
)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="commentree compile",
    description="Compile a run's programs for a TPU slice, without one; report memory,"
    " messages and estimated time.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  gin_cli.add_gin_flags(parser, required=False)
  parser.add_argument(
    "--topology", required=True, metavar="SLICE", help="v5e:16x16, v5p-128, …"
  )
  parser.add_argument(
    "--num_slices", type=int, default=1, metavar="N", help="slices of that kind (1)"
  )
  parser.add_argument(
    "--program",
    default="train",
    metavar="NAMES",
    help="of train, eval, infer, with commas between (train)",
  )
  parser.add_argument(
    "--vocab_size",
    type=int,
    default=32128,
    metavar="N",
    help="pieces in the vocabulary, unless ModelConfig.vocab_size says (32128)",
  )
  parser.add_argument(
    "--comment_tokens",
    type=float,
    default=COMMENT_TOKENS,
    metavar="N",
    help=f"mean tokens of a comment, at most a row's ({COMMENT_TOKENS})",
  )
  parser.add_argument(
    "--effort",
    choices=["O0", "O1", "O2", "O3"],
    help="how hard the compiler tries, one of XLA's levels: O1 compiles faster, with"
    " about the same memory and messages, but far too long estimates (as in a run)",
  )
  parser.add_argument(
    "--json", metavar="FILE", help="write the reports as JSON, `-` to stdout"
  )
  search = parser.add_argument_group("search")
  search.add_argument(
    "--search",
    action="store_true",
    help="compile the train step with many settings; recommend the fastest that fits",
  )
  search.add_argument(
    "--forests_per_device",
    default="1,2,4,8,16",
    metavar="NUMBERS",
    help="batch sizes to try (1,2,4,8,16)",
  )
  search.add_argument(
    "--remat",
    default="none,minimal,full",
    metavar="NAMES",
    help="ModelConfig.remat_policy to try (none,minimal,full)",
  )
  search.add_argument(
    "--presets",
    default="dp,fsdp,tp,fsdp_tp",
    metavar="NAMES",
    help="gin/partitioning/ files to try (dp,fsdp,tp,fsdp_tp)",
  )
  search.add_argument(
    "--model_parallel",
    default="4",
    metavar="NUMBERS",
    help="MODEL_PARALLEL of tp and fsdp_tp (4)",
  )
  return parser


def main(argv: Sequence[str]) -> int:
  """Compiles and reports; returns the exit code, 0 if all that was asked for fits."""
  others, overrides = gin_cli.split_overrides(argv)
  arguments = _parser().parse_args(others)
  run = gin_cli.load(
    [_DEFAULTS, *arguments.gin_file],
    [*gin_cli.still_needed(_NOT_NEEDED, overrides), *overrides],
    arguments.gin_search_paths,
  )
  # The devices here, if any, are none of this command's business.
  os.environ["JAX_PLATFORMS"] = "cpu"
  if arguments.search:
    from commentree.launch.compiling import compile_search

    return compile_search.search(run, arguments)
  from commentree.launch.compiling import compile_job

  return compile_job.compile_programs(run, arguments)


if __name__ == "__main__":
  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
