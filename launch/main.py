"""The `commentree` command: one verb each for what a researcher does."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from commentree.errors import UserError, printable, suggestion
from commentree.launch.settings import library_noise

VERBS = {
  "train": "train a model; resumes by itself what was interrupted",
  "eval": "evaluate a checkpoint: does context help?",
  "compare": "put the evaluations of several runs side by side",
  "report": "show a run as one page: does context help, curves, time, settings",
  "infer": "fill, embed, score, tag, classify comments, or rank or write replies",
  "inspect": "show trees as the model sees them, on the terminal or as a page",
  "build": "make a dataset of trees from dumps and corpora of any size",
  "vocab": "train a vocabulary on comment trees, or add markers to one",
  "cache": "tokenise a run's trees once, into a SeqIO cache, with Apache Beam",
  "convert": "write a checkpoint in another form, or make a run's first from others'",
  "export": "write a model's functions as files that run without this package",
  "compile": "what a run takes on a TPU slice, asked of the TPU compiler; needs no TPU",
  "launch": "bring a run up on many hosts: this machine, TPU VMs, GKE",
}


def usage() -> str:
  """The text of `commentree --help`."""
  lines = ["usage: commentree VERB [FLAGS]", "", "verbs:"]
  lines += [f"  {verb:<9}{what}" for verb, what in VERBS.items()]
  lines += ["", "commentree VERB --help shows a verb's flags, with examples."]
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; returns its exit code.

  A `UserError` is printed as one line and gives its exit code (see `errors`).
  """
  arguments = list(sys.argv[1:] if argv is None else argv)
  for stream in (sys.stdout, sys.stderr):
    # A path may hold bytes that are no text, a terminal know few characters.
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  if not arguments or arguments[0] in ("-h", "--help", "help"):
    return run_verb(_print_usage, arguments)
  library_noise.disable_libtpu_without_tpu()
  verb, *rest = arguments
  if verb not in VERBS:
    print(
      f"commentree: no verb {verb!r}; there are {', '.join(VERBS)}"
      + suggestion(verb, VERBS),
      file=sys.stderr,
    )
    return UserError.exit_code
  return run_verb(
    importlib.import_module(f"commentree.launch.commands.{verb}").main, rest
  )


def _print_usage(argv: Sequence[str]) -> int:
  del argv
  print(usage(), flush=True)
  return 0


def run_verb(verb_main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
  """Runs a verb's `main`; turns its user errors into one line on stderr.

  A package that is missing is one of them.
  """
  try:
    return verb_main(argv)
  except UserError as error:
    line = " ".join(printable(str(error)).splitlines())
    print(f"commentree: {line}", file=sys.stderr)
    return error.exit_code
  except ModuleNotFoundError as error:
    if not error.name or error.name.partition(".")[0] == "commentree":
      raise
    print(
      f"commentree: needs the package of {error.name}, which is not installed; a small"
      " install (docs/inference.md) has none: pip install commentree",
      file=sys.stderr,
    )
    return UserError.exit_code
  except BrokenPipeError:
    # The reader of a pipe left, as `| head` does.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
  sys.exit(main())
