"""`commentree infer`: what a trained model says of comments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from commentree.errors import UserError
from commentree.launch.inference.modes import mode_table
from commentree.launch.settings import distributed_flags, gin_cli, run_folder
from commentree.launch.settings.configurables import RunConfig

_EPILOG = (
  """\
modes:
  fill      the likeliest tokens for each <mask> in the comments, given their threads
  embed     a vector for each comment; with --contextual one given its thread too
  rank      the likeliest replies to each comment among many comments
  score     how likely each comment is, with the comments above it and without
  generate  replies to comments (runs of clm)
  tag       labelled parts of comments (runs of tag)
  classify  a label for each comment (runs of classify)
  regress   a number for each comment (runs of regress)

examples:
  fill in what is masked:
    commentree infer --model_dir=runs/mine --mode=fill --input trees.jsonl \\
      --output=filled.jsonl

  vectors as a table of Parquet, or as an array beside a file of ids:
    commentree infer --model_dir=runs/mine --mode=embed --input data/reddit \\
      --output=vectors.parquet
    commentree infer --model_dir=runs/mine --mode=embed --input 'dumps/*.zst' \\
      --output=vectors.npy

  which of many comments answer a thread; without --candidates those of --input:
    commentree infer --model_dir=runs/mine --mode=rank --input threads.jsonl \\
      --candidates replies.jsonl --output=ranked.jsonl --top_k=10

  how much threads explain, in a pipe:
    zcat trees.jsonl.gz | commentree infer --model_dir=runs/mine --mode=score \\
      --input - --output - | jq .difference

  likewise, nearly and more quickly:
    commentree infer --model_dir=runs/mine --mode=score --masks_apart=8 \\
      --input trees.jsonl --output=scored.jsonl

  which of the comments above made a comment what it is:
    commentree infer --model_dir=runs/mine --mode=score --attribution \\
      --input trees.jsonl --output=attributed.jsonl

  three replies to each comment without replies:
    commentree infer --model_dir=runs/replies --mode=generate --input trees.jsonl \\
      --output=replies.jsonl --num_replies=3 --top_p=0.9 --temperature=0.8

Every comment that is read gets one line, in the input's order; so do posts. What is
done lies in OUTPUT.parts until all is: the same command again, with any number of
hosts, continues from there. Settings are those the run was started with
(MODEL_DIR/config.gin); --gin.NAME=VALUE changes them.

"""
  + distributed_flags.EPILOG
  + """
exit codes: 0 done, 2 a mistake of the user's, 74 storage refused, 75 a host was lost
or never came, 130 and 143 interrupted: what is done is kept.
"""
)


def main(argv: Sequence[str]) -> int:
  """Infers; returns the exit code."""
  parser = _parser()
  others, overrides = gin_cli.split_overrides(argv)
  arguments = parser.parse_args(others)
  settings = distributed_flags.settings(arguments)
  run = run_folder.load(
    arguments.model_dir, overrides, trust_config=arguments.trust_config
  )
  options = _options(arguments)
  mode_table.check(arguments.mode, run, options)
  _check(arguments)

  # The settings are sound: now what is heavy.
  from commentree.launch.inference import run_context, trees

  facts = run_context.of_run(run)
  found = trees.find(
    arguments.input,
    facts.builder.preprocessing.trees,
    arguments.format,
    arguments.split,
  )
  signature = _find_candidates(arguments, facts, found, options)
  sought = _sought(arguments, options)
  if sought is not None and found.signature is not None:
    trees.check_there_is(*sought, found)
  return _infer(arguments, settings, run, facts, found, options, signature)


def _find_candidates(
  arguments: argparse.Namespace, facts: Any, found: Any, options: dict[str, Any]
) -> dict[str, Any]:
  """Puts the trees to rank comments of into the options; returns what tells them."""
  if arguments.mode != "rank":
    return {}
  from commentree.launch.inference import trees

  source = found
  if arguments.candidates is not None:
    source = trees.find(
      arguments.candidates, facts.builder.preprocessing.trees, arguments.format
    )
    if source.signature is None:
      raise UserError("--candidates=-: must be files; only --input may be -")
  elif source.signature is None:
    raise UserError(
      "--input=-: can be read once, and --mode=rank reads its trees twice: give files"
      " by --candidates"
    )
  options["candidates"] = source.trees
  return {"--candidates": source.signature}


def _sought(
  arguments: argparse.Namespace, options: dict[str, Any]
) -> tuple[str, str] | None:
  """What some comment must hold, and the flag that says so; None for nothing."""
  if arguments.mode == "fill":
    return options.get("mask", "<mask>"), "--mask"
  if options.get("reply_to") == "marked":
    return options.get("mark", "<reply>"), "--mark"
  return None


def _infer(
  arguments: argparse.Namespace,
  settings: Any,
  run: RunConfig,
  facts: Any,
  found: Any,
  options: dict[str, Any],
  signatures: dict[str, Any],
) -> int:
  """Joins the other hosts and goes to work."""
  from commentree.launch.inference import run as run_lib
  from commentree.launch.inference.chunks import ChunkSize
  from commentree.training.cluster import distributed

  whole = mode_table.with_defaults(arguments.mode, facts, options)
  job = run_lib.InferenceJob(
    run=facts,
    step=arguments.step,
    mode=mode_table.make(arguments.mode, facts, arguments.ancestors, options),
    options={
      "--mode": arguments.mode,
      "--ancestors": arguments.ancestors,
      **{f"--{name}": value for name, value in whole.items()},
      **signatures,
    },
    found=found,
    output=arguments.output,
    chunk=ChunkSize(trees=arguments.chunk_trees),
    batch_size=arguments.batch_size,
  )
  with distributed.join_cluster(
    settings, run.train.health, arguments.log_dir, arguments.model_dir
  ) as hosts:
    run_lib.infer(job, hosts)
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="commentree infer",
    description="Answer for the comments of trees with a trained model.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  run_folder.add_flags(parser)
  parser.add_argument(
    "--mode", required=True, choices=tuple(mode_table.MODES), help="kind of answer"
  )
  parser.add_argument(
    "--input",
    required=True,
    nargs="+",
    metavar="TREES",
    help="files of trees, globs or folders; the folder of a built dataset; or - for"
    " tree JSONL from standard input",
  )
  parser.add_argument(
    "--format",
    metavar="NAME",
    help="of all --input; told from each if left out (see docs/data.md)",
  )
  parser.add_argument("--split", help="of a built dataset; default all")
  parser.add_argument(
    "--output",
    required=True,
    metavar="FILE",
    help="local, gs:// or s3://; vectors as .npy or .parquet, else JSONL; - for"
    " standard output",
  )
  parser.add_argument(
    "--ancestors",
    choices=("true", "parent_only", "none"),
    default="true",
    help="which of the comments above it a comment sees (default true: all)",
  )
  parser.add_argument(
    "--batch_size",
    type=int,
    metavar="N",
    help="forests of comments under way at the same time; memory and speed depend on"
    " it, answers do not (default two for each device)",
  )
  parser.add_argument(
    "--chunk_trees",
    type=int,
    default=256,
    metavar="N",
    help="trees that are answered, and kept, at once (default 256)",
  )
  fill = parser.add_argument_group("fill")
  fill.add_argument(
    "--top_k",
    type=int,
    metavar="K",
    help="tokens for each mask (default 5); rank: replies to each comment (default 10);"
    " generate: draw from so many",
  )
  fill.add_argument(
    "--mask", metavar="WORD", help="what stands for a masked token (default <mask>)"
  )
  embed = parser.add_argument_group("embed")
  embed.add_argument(
    "--contextual",
    action="store_true",
    default=None,
    help="also the mean of the decoder's states, which see the comments above",
  )
  score = parser.add_argument_group("score")
  score.add_argument(
    "--attribution",
    action="store_true",
    default=None,
    help="also how much each comment above counts: what is lost without it alone",
  )
  score.add_argument(
    "--masks_apart",
    type=int,
    metavar="N",
    help="quicker, not exact: mask tokens N apart at the same time: a comment is read N"
    " times at most (default: each token is masked alone)",
  )
  rank = parser.add_argument_group("rank")
  rank.add_argument(
    "--candidates",
    nargs="+",
    metavar="TREES",
    help="trees whose comments may be replies, as --input (default those of --input)",
  )
  _add_generate_flags(parser)
  distributed_flags.add_flags(parser)
  return parser


def _add_generate_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group(
    "generate",
    "greedy, unless --temperature, --top_k, --top_p or --num_replies make replies drawn"
    " or --beam_width searched for",
  )
  group.add_argument(
    "--reply_to",
    choices=("leaves", "post", "all", "marked"),
    help="comments without replies (default), posts, all, or marked ones",
  )
  group.add_argument(
    "--mark", metavar="WORD", help="what marks comments in their text (default <reply>)"
  )
  group.add_argument(
    "--author", metavar="NAME", help="who writes (default somebody new to the tree)"
  )
  for flag, kind, text in (
    ("--seed", int, "of what is drawn (default 0)"),
    ("--max_tokens", int, "most tokens of a reply (default 64)"),
    ("--num_replies", int, "replies to each comment (default 1)"),
    ("--temperature", float, "below 1 likelier tokens, above 1 others (default 1)"),
    ("--top_p", float, "draw from the likeliest tokens with such a share (default 1)"),
    ("--beam_width", int, "replies searched for at the same time"),
    ("--length_penalty", float, "of a beam: 0 favours short replies (default 0.6)"),
  ):
    group.add_argument(flag, type=kind, metavar="N", help=text)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
  """The modes' own flags that were given."""
  names = dict.fromkeys(n for facts in mode_table.MODES.values() for n in facts.options)
  given = {name: getattr(arguments, name) for name in names}
  return {name: value for name, value in given.items() if value is not None}


def _check(arguments: argparse.Namespace) -> None:
  for flag in ("batch_size", "chunk_trees"):
    value = getattr(arguments, flag)
    if value is not None and value < 1:
      raise UserError(f"--{flag}={value}: must be at least 1")
  several = arguments.process_count is not None and arguments.process_count > 1
  if several and "-" in (arguments.output, *arguments.input):
    raise UserError(
      "--input=- and --output=- are for one host alone: name files that all hosts see"
    )


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
