"""`commentree cache`: a run's subtrees, tokenised once by SeqIO's job on Beam."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from commentree.console import Console
from commentree.errors import UserError
from commentree.launch.settings import beam_flags, flags, gin_cli, library_noise

_EPILOG = """\
Takes the gin flags of a run, so that its command needs one word changed and a folder
named. The cache is SeqIO's, as `seqio_cache_tasks` writes it: T5X's tools read it with
--seqio_additional_cache_dirs, runs of commentree with USE_CACHED_TASKS.

examples:
  the subtrees of a run, on this machine:
    commentree cache --output_cache_dir=cached --gin_file=runs/pretrain.gin \\
      --gin.MODEL_DIR='"runs/mine"' --gin.MIXTURE_OR_TASK_NAME='"commentree_files"' \\
      --gin.FILES='"built/reddit"' --gin.VOCABULARY='"trees.model"' \\
      --gin.TRAIN_STEPS=10000

  then train from it: the same command with `train`, without --output_cache_dir, and
    --gin.USE_CACHED_TASKS=True --gin.SEQIO_ADDITIONAL_CACHE_DIRS='"cached"'

  in several processes of this machine; options behind `--` are Beam's:
    commentree cache --output_cache_dir=cached --gin_file=... -- \\
      --direct_running_mode=multi_processing --direct_num_workers=8

  on Dataflow:
    commentree cache --output_cache_dir=gs://bucket/cached --gin_file=... \\
      --runner=DataflowRunner -- --project=... --region=... \\
      --temp_location=gs://bucket/tmp --sdk_container_image=...

exit codes: 0 done, 2 a mistake of the user's, 130 stopped by Ctrl-C.
"""


def main(argv: Sequence[str]) -> int:
  """Caches a task; returns the exit code.

  Raises:
    UserError: for anything the user can mend.
  """
  parser = argparse.ArgumentParser(
    prog="commentree cache",
    description="Tokenise a run's trees once, with Apache Beam, into a SeqIO cache.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--output_cache_dir", required=True, metavar="DIR", help="the SeqIO cache"
  )
  parser.add_argument(
    "--runner",
    default="DirectRunner",
    help="Beam's (default %(default)s: this machine)",
  )
  flags.add_number(parser, "--min_shards", 64, "least number of files of a split")
  parser.add_argument(
    "--overwrite", action="store_true", help="cache again what is cached already"
  )
  gin_cli.add_gin_flags(parser)
  own, options = beam_flags.split(argv)
  parsed = gin_cli.parse(parser, own)
  arguments = parsed.arguments
  if arguments.min_shards < 1:
    raise UserError(f"--min_shards={arguments.min_shards}: must be at least 1")
  beam_flags.require("commentree cache")

  library_noise.load_tensorflow()
  from commentree.tasks.preparation import cache_job

  job = cache_job.CacheJob(
    parsed.run.data,
    arguments.output_cache_dir,
    [f"--runner={arguments.runner}", *options],
    arguments.min_shards,
    arguments.overwrite,
  )
  console = Console(stderr=True)
  try:
    with beam_flags.errors_in_one_line():
      print(*cache_job.run(job, console), sep="\n")
  except KeyboardInterrupt:
    console.print("stopped; the same command begins anew")
    return beam_flags.INTERRUPTED
  return 0


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
