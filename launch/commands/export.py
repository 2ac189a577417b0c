"""`commentree export`: a model's functions as files that run without this package."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from commentree.errors import UserError
from commentree.launch.inference.modes import mode_table
from commentree.launch.settings import gin_cli, library_noise, run_folder

_EPILOG = """\
examples:
  all that the newest checkpoint can do, see `commentree infer --help`:
    commentree export --model_dir=runs/mine --to=exported

  the vectors of comments alone, of the best checkpoint, four small forests at a time:
    commentree export --model_dir=runs/mine --step=best --to=exported --mode=embed \\
      --batch_size=4 --gin.ForestLayout.decoder_rows=8

  replies as `infer --mode=generate` would write them:
    commentree export --model_dir=runs/replies --to=exported --mode=generate \\
      --max_tokens=40 --temperature=0.8 --top_p=0.9

TO gets README.md, spec.json (inputs and outputs), a serialized function for each mode
(StableHLO for cpu, tpu and cuda), the parameters as safetensors, the vocabulary, and
run.py, which runs it all with JAX and flatbuffers: python exported/run.py. It appears
whole, or not at all; nothing is overwritten. Shapes are fixed by the run's settings;
--gin.NAME=VALUE changes those.

exit codes: 0 done, 2 a mistake of the user's, 74 storage refused.
"""
_OPTIONS: dict[str, Any] = {
  "top_k": int,
  "max_tokens": int,
  "num_replies": int,
  "temperature": float,
  "top_p": float,
  "beam_width": int,
  "length_penalty": float,
}


def main(argv: Sequence[str]) -> int:
  """Exports; returns the exit code."""
  parser = _parser()
  others, overrides = gin_cli.split_overrides(argv)
  arguments = parser.parse_args(others)
  if arguments.batch_size < 1:
    raise UserError(f"--batch_size={arguments.batch_size}: must be at least 1")
  run = run_folder.load(
    arguments.model_dir, overrides, trust_config=arguments.trust_config
  )
  able = [m for m in mode_table.able(run) if mode_table.MODES[m].exported]
  modes = arguments.mode or able
  given = {name: getattr(arguments, name) for name in _OPTIONS}
  given = {name: value for name, value in given.items() if value is not None}
  options = {
    mode: {
      name: value
      for name, value in given.items()
      if name in mode_table.MODES[mode].options
    }
    for mode in modes
  }
  for mode in modes:
    mode_table.check(mode, run, options[mode])
  taken = {name for of_mode in options.values() for name in of_mode}
  for name in given.keys() - taken:
    mode_table.check(modes[0], run, {name: given[name]})

  # The settings are sound: now what is heavy.
  library_noise.load_tensorflow()
  return _export(arguments, run, options)


def _export(arguments: argparse.Namespace, run: Any, options: dict[str, Any]) -> int:
  from commentree.launch.exporting import artifact, functions
  from commentree.launch.inference import run_context
  from commentree.launch.settings import model_sizes
  from commentree.models.model import CommentTreeModel
  from commentree.training.checkpointing import (
    checkpoint_choice,
    checkpoints,
    run_record,
    storage,
  )
  from commentree.training.warm_starts import safetensors_writing, sources

  folder = storage.as_path(arguments.to)
  safetensors_writing.refuse_existing(folder)
  facts = run_context.of_run(run)
  model_dir = storage.as_path(run.train.model_dir)
  step = checkpoint_choice.choose(
    model_dir, arguments.step, run.train.checkpoint.best_metric
  )
  path = checkpoints.path_of(model_dir, step)
  run_record.check_vocabulary(path, {"vocabulary": facts.tokenizer.fingerprint})
  size = facts.tokenizer.vocab_size
  config = model_sizes.with_sizes(
    run.model, run.data.preprocessing, size, run.data.objective_names[0]
  )
  # One program for all platforms, where kernels are for TPUs.
  model = CommentTreeModel(dataclasses.replace(config, attention="xla"))
  made = [
    functions.make(mode, facts, model, arguments.batch_size, of_mode)
    for mode, of_mode in options.items()
  ]
  artifact.write(folder, made, facts, model, sources.open_source(path), _say)
  _say(f"wrote {folder}: {', '.join(options)} of {path}; try python {folder}/run.py")
  return 0


def _say(line: str) -> None:
  print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="commentree export",
    description="Write a trained model's functions as files that run without this"
    " package.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  run_folder.add_flags(parser)
  parser.add_argument("--to", required=True, metavar="DIR", help="folder to make")
  parser.add_argument(
    "--mode",
    action="append",
    choices=tuple(name for name, facts in mode_table.MODES.items() if facts.exported),
    help="what to export; may be given more than once; default all that the run can do",
  )
  parser.add_argument(
    "--batch_size", type=int, default=1, help="forests computed at once (default 1)"
  )
  options = parser.add_argument_group("options of modes, as of commentree infer")
  for name, kind in _OPTIONS.items():
    users = [
      mode
      for mode, facts in mode_table.MODES.items()
      if name in facts.options and facts.exported
    ]
    metavar = "N" if kind is int else "X"
    options.add_argument(
      f"--{name}", type=kind, metavar=metavar, help=f"of {' and '.join(users)}"
    )
  return parser


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
