"""`commentree vocab`: trains a vocabulary on comment trees, or adds markers to one."""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from commentree.console import Console
from commentree.errors import UserError
from commentree.tasks.config.preprocessing import (
  CleaningConfig,
  MarkersConfig,
  TreeConfig,
)

_EPILOG = """\
examples:
  8,000 pieces from one file:
    commentree vocab --input=trees.jsonl.gz --output=trees.model

  32,000 byte-pair pieces from a folder and a glob; bytes for rare characters:
    commentree vocab --input dumps/ 'more/*.jsonl.zst' --output=big.model \\
      --size=32000 --type=bpe --byte_fallback

  from two corpora that `commentree build` made, and a file:
    commentree vocab --input data/reddit data/forum more.jsonl --output=all.model

  a quick one from 20,000 random comments:
    commentree vocab --input=trees.jsonl.gz --output=quick --size=2000 \\
      --max_comments=20000

  byte-level BPE as RoBERTa's, a tokenizer.json of Hugging Face's tokenizers:
    commentree vocab --input=trees.jsonl.gz --output=trees.json \\
      --type=byte_bpe --size=32000

  RoBERTa's or T5's own vocabulary with our markers behind its tokens:
    commentree vocab --from=roberta/tokenizer.json --output=roberta.json
    commentree vocab --from=t5/spiece.model --output=t5.model

  with T5's sentinels, which the objective 'span_corruption' needs:
    commentree vocab --from=t5/spiece.model --output=t5.model --sentinels=100

--type=unigram and bpe write OUTPUT.model for SentencePiece, byte_bpe and wordpiece
OUTPUT.json for tokenizers. Beside it goes a record of how it was made,
OUTPUT.model.json or OUTPUT.record.json. The same input and flags give the same bytes.
exit codes: 0 done, 2 a mistake of the user's.
"""

# Encoding this many shows how long pieces are, in a second or so.
_MEASURED_COMMENTS = 5_000
_COMMENTS_BETWEEN_UPDATES = 1_000


def _parser() -> argparse.ArgumentParser:
  from commentree.tasks.vocabulary.vocabularies import ModelType, VocabularyConfig

  defaults = VocabularyConfig()
  parser = argparse.ArgumentParser(
    prog="commentree vocab",
    description="Train a vocabulary on trees of comments, or add the markers that"
    " runs need to an existing one.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument(
    "--input",
    nargs="+",
    metavar="TREES",
    help="trees to train on: files, globs, folders, and folders that `commentree"
    " build` made, of which the train split is read",
  )
  parser.add_argument(
    "--format",
    metavar="NAME",
    help="of all files of --input; told from each if left out (see docs/data.md)",
  )
  parser.add_argument(
    "--columns",
    nargs="+",
    default=(),
    metavar="ROLE=NAME",
    help="which columns of tables hold what, such as text=content; usual names are"
    " guessed (docs/data.md lists the roles)",
  )
  source.add_argument(
    "--from",
    dest="source",
    metavar="VOCABULARY",
    help="a SentencePiece model or tokenizer.json to add markers to, untrained",
  )
  parser.add_argument(
    "--output",
    required=True,
    metavar="PATH",
    help="where to put PATH.model or PATH.json",
  )
  parser.add_argument(
    "--overwrite",
    action="store_true",
    help="replace another vocabulary that is there; the same is made again without",
  )
  parser.add_argument(
    "--size",
    type=int,
    default=defaults.size,
    help="pieces, markers included (default %(default)s)",
  )
  parser.add_argument(
    "--type",
    choices=get_args(ModelType),
    default=defaults.model_type,
    help="kind of pieces: SentencePiece's unigram or bpe, tokenizers' byte_bpe or"
    " wordpiece (default %(default)s)",
  )
  parser.add_argument(
    "--byte_fallback",
    action="store_true",
    help="write characters without a piece as bytes; takes 256 of the pieces",
  )
  parser.add_argument(
    "--max_comments",
    type=int,
    default=500_000,
    metavar="N",
    help="train on N comments drawn at random if there are more (default %(default)s)",
  )
  parser.add_argument(
    "--max_users",
    type=int,
    default=MarkersConfig().max_users,
    metavar="N",
    help="author markers <user_0> to <user_N-1>, as MarkersConfig.max_users of the"
    " runs that are to use it (default %(default)s)",
  )
  parser.add_argument(
    "--sentinels",
    type=int,
    default=0,
    metavar="N",
    help="T5's sentinels <extra_id_0> to <extra_id_N-1>, to predict spans; part of"
    " --size, or added to --from where it lacks them (default %(default)s)",
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="of the draw of comments (default 0)"
  )
  return parser


def main(argv: Sequence[str]) -> int:
  """Trains a vocabulary; returns the exit code.

  Raises:
    UserError: for anything the user can mend.
  """
  arguments = _parser().parse_args(argv)
  if arguments.max_comments < 1:
    raise UserError(f"--max_comments={arguments.max_comments}: must be at least 1")
  if not 0 <= arguments.sentinels <= 1000:
    raise UserError(f"--sentinels={arguments.sentinels}: must be from 0 to 1000")

  from commentree.tasks.trees import markers

  marker_tokens = markers.all_markers(MarkersConfig(max_users=arguments.max_users))
  console = Console(stderr=True)
  if arguments.source:
    path = _add_markers(arguments, marker_tokens, console)
  else:
    path = _train(arguments, marker_tokens, console)
  print(path)
  return 0


def _add_markers(
  arguments: argparse.Namespace, marker_tokens: list[str], console: Console
) -> pathlib.Path:
  """Extends the vocabulary given; returns the new file's path."""
  from commentree.tasks.vocabulary import vocabularies, vocabulary_files

  content = vocabulary_files.read(arguments.source)
  ending = ".json" if vocabulary_files.is_json(content) else ".model"
  path = _with_ending(arguments.output, ending)
  added = vocabularies.add_markers(
    arguments.source,
    path,
    marker_tokens,
    arguments.sentinels,
    overwrite=arguments.overwrite,
  )
  size = vocabularies.Tokenizer(lambda: path).vocab_size
  console.print(
    f"added {len(added)} of {len(marker_tokens) + arguments.sentinels} markers"
    f"{' and sentinels' if arguments.sentinels else ''} to the"
    f" {size - len(added):,} tokens of {arguments.source}, which keep their ids",
  )
  return path


def _train(
  arguments: argparse.Namespace, marker_tokens: list[str], console: Console
) -> pathlib.Path:
  """Trains a vocabulary; returns its path."""
  from commentree.tasks.sources import vocabulary_training_text
  from commentree.tasks.trees.comment_tree import ReadCounts
  from commentree.tasks.vocabulary import vocabularies, vocabulary_files

  config = vocabularies.VocabularyConfig(
    arguments.size, arguments.type, arguments.byte_fallback
  )
  path = _with_ending(
    arguments.output, ".model" if config.is_sentencepiece else ".json"
  )
  vocabulary_files.check_writable(path)
  details = {
    "input": arguments.input,
    "format": arguments.format,
    "columns": list(arguments.columns),
    "max_comments": arguments.max_comments,
    "seed": arguments.seed,
  }
  if not arguments.overwrite:
    settings = vocabularies.training_settings(
      config, marker_tokens, arguments.sentinels
    )
    vocabulary_files.check_same_settings(path, {**settings, **details})

  started = time.perf_counter()
  read_counts = ReadCounts()
  stream = vocabulary_training_text.iter_texts(
    arguments.input,
    TreeConfig(columns=tuple(arguments.columns)),
    CleaningConfig(),
    read_counts,
    arguments.format,
  )
  texts, seen = vocabulary_training_text.sample(
    _with_progress(stream, console), arguments.max_comments, arguments.seed
  )
  read = time.perf_counter()
  console.print(
    f"read {seen:,} comments with text in {read - started:.1f} s;"
    f" training {config.size:,} {config.model_type} pieces on {len(texts):,} of them",
  )
  read_counts.tell(console)
  with console.status("training: some 10 s for each million words"):
    vocabularies.train_vocabulary(
      texts,
      path,
      config,
      marker_tokens,
      arguments.sentinels,
      details=details,
      overwrite=arguments.overwrite,
    )
  trained = time.perf_counter()

  tokenizer = vocabularies.Tokenizer(lambda: path)
  tokenizer.check()
  every = -(-len(texts) // _MEASURED_COMMENTS)
  measured = vocabulary_training_text.coverage(tokenizer, texts[::every])
  console.print(
    f"trained in {trained - read:.1f} s: {measured.tokens_per_word:.2f} tokens a word,"
    f" {measured.unknown_share:.3%} of tokens unknown,"
    f" {measured.comments_per_second:,.0f} comments/s to encode on one thread",
  )
  return path


def _with_ending(output: str, ending: str) -> pathlib.Path:
  """The file of an output given with or without its ending."""
  return pathlib.Path(output.removesuffix(ending) + ending)


def _with_progress(texts: Iterable[str], console: Console) -> Iterator[str]:
  """Passes texts on, telling a terminal how many there were so far."""
  started = time.perf_counter()
  with console.status("reading") as status:
    for count, text in enumerate(texts, 1):
      if count % _COMMENTS_BETWEEN_UPDATES == 0:
        rate = count / (time.perf_counter() - started)
        status.update(f"reading: {count:,} comments ({rate:,.0f}/s)")
      yield text


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
