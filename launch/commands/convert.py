"""`commentree convert`: checkpoints from and for other programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

from commentree.errors import UserError
from commentree.launch.settings import gin_cli, library_noise
from commentree.launch.settings.configurables import RunConfig
from commentree.training.warm_starts.formats import array_source

_EPILOG = """\
examples:
  a checkpoint of ours for T5X, which reads either form:
    commentree convert --to=t5x_native runs/mine/checkpoint_1000 for_t5x/checkpoint_1000

  T5X's own form to Orbax, optimizer and step included:
    commentree convert --to=orbax t5/checkpoint_1000000 t5_orbax/checkpoint_1000000

  the parameters alone as safetensors, for other programs and for later warm starts:
    commentree convert --to=safetensors runs/mine/checkpoint_1000 mine_safetensors

  the encoder for `transformers` and `sentence-transformers`, with its vocabulary and a
  model card; settings are those of the run's folder:
    commentree convert --to=hugging_face runs/mine/checkpoint_1000 mine_encoder

  all of the model for `transformers`, by a modeling file that goes along:
    commentree convert --to=hugging_face --whole_model runs/mine/checkpoint_1000 mine

  a first checkpoint of a run from other files, T5X's or safetensors; the settings are
  those of the run:
    commentree convert roberta-base runs/mine/checkpoint_0 \\
      --gin_file=runs/pretrain.gin --gin_file=models/base.gin \\
      --gin.MIXTURE_OR_TASK_NAME='"commentree_files"' \\
      --gin.FILES='"trees.jsonl.gz"' --gin.VOCABULARY='"trees.model"' \\
      --gin.TRAIN_STEPS=10000

  what that would take from where, writing nothing: add --dry_run

  the settings of a model of Hugging Face, from its config.json, as a model file of gin:
    commentree convert roberta-base --print_gin > mine.gin

Nothing is overwritten; what is written appears whole, or not at all. Without settings
every array is copied as it is; with them, parameters find their places by the rules of
docs/warm_starts.md, and the optimizer is new.
"""


def main(argv: Sequence[str]) -> int:
  """Converts; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="commentree convert",
    description="Write a checkpoint in another form, or make a run's first from others'"
    " files.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("source", metavar="FROM", help="a checkpoint, or safetensors")
  parser.add_argument(
    "target",
    metavar="TO",
    nargs="?",
    help="folder to make; checkpoint_<step> for orbax and t5x_native",
  )
  parser.add_argument(
    "--to",
    choices=("orbax", "t5x_native", "safetensors", "hugging_face"),
    default="orbax",
    help="its form; default orbax, which runs of ours read and T5X by default",
  )
  parser.add_argument(
    "--whole_model",
    action="store_true",
    help="of --to=hugging_face: all of the model, where else its encoder is written",
  )
  parser.add_argument(
    "--dry_run", action="store_true", help="say what would be done, and stop"
  )
  parser.add_argument(
    "--print_gin",
    action="store_true",
    help="print the settings that FROM's config.json asks for, and stop",
  )
  gin_cli.add_gin_flags(parser, required=False)
  others, overrides = gin_cli.split_overrides(argv)
  arguments = parser.parse_args(others)
  if arguments.print_gin:
    from commentree.training.warm_starts import hugging_face

    print("\n".join(hugging_face.gin_lines(arguments.source)))
    return 0
  if arguments.target is None:
    raise UserError("commentree convert FROM TO: name the folder to make, TO")
  if arguments.gin_file and arguments.to in ("safetensors", "hugging_face"):
    raise UserError(
      f"--to={arguments.to}: takes a checkpoint as it is; leave --gin_file out"
    )
  if arguments.whole_model and arguments.to != "hugging_face":
    raise UserError(f"--whole_model: is of no use with --to={arguments.to}")
  if not arguments.gin_file:
    if overrides:
      raise UserError("--gin.NAME=VALUE: give the --gin_file of the run as well")
    return _copy(arguments)
  run, text = _settings(arguments, overrides)

  # The settings are sound: now what is heavy.
  library_noise.load_tensorflow()
  return _start(arguments, run, text)


def _settings(
  arguments: argparse.Namespace, overrides: Sequence[str]
) -> tuple[RunConfig, str]:
  """Returns the run's settings, with what the two folders say of them."""
  given = {override.partition(" =")[0] for override in overrides}
  if "INITIAL_CHECKPOINT_PATH" in given:
    raise UserError("--gin.INITIAL_CHECKPOINT_PATH: it is FROM; leave it out")
  folder = arguments.target.rstrip("/").rpartition("/")[0] or "."
  known = {
    "INITIAL_CHECKPOINT_PATH": repr(arguments.source),
    "MODEL_DIR": repr(folder),
  }
  ours = [f"{name} = {value}" for name, value in known.items() if name not in given]
  run = gin_cli.load(
    arguments.gin_file, [*ours, *overrides], arguments.gin_search_paths
  )
  return run, gin_cli.text_in_force(run)


def _say(line: str) -> None:
  print(line, flush=True)


def _copy(arguments: argparse.Namespace) -> int:
  """Copies every array as it is."""
  from commentree.training.checkpointing import storage
  from commentree.training.warm_starts import safetensors_writing, sources, writing

  path = storage.as_path(arguments.target)
  if arguments.to == "hugging_face":
    from commentree.launch.exporting import hugging_face_folder

    source_path = storage.as_path(arguments.source.rstrip("/"))
    hugging_face_folder.convert(
      source_path,
      path,
      whole=arguments.whole_model,
      dry_run=arguments.dry_run,
      say=_say,
    )
    return 0
  source: array_source.ArraySource = sources.open_source(arguments.source)
  if arguments.to == "safetensors":
    safetensors_writing.refuse_existing(path)
    source = safetensors_writing.parameters_of(source)
  else:
    writing.step_of(path)
  for line in source.check():
    _say(line)
  size = sum(spec.num_bytes for spec in source.arrays.values())
  what = f"{len(source.arrays)} arrays, {size / 1e6:,.1f} MB"
  _say(f"{source.path} ({source.kind}): {what}")
  if arguments.dry_run:
    _say(f"would write {path} ({arguments.to})")
    return 0
  if arguments.to == "safetensors":
    safetensors_writing.write_parameters(source, path)
  else:
    writing.write(source, path, arguments.to, writing.data_state(source.path))
  _say(f"wrote {path} ({arguments.to}): {what}")
  return 0


def _start(arguments: argparse.Namespace, run: RunConfig, text: str) -> int:
  """Makes the first checkpoint of a run."""
  from commentree.training import initial_state
  from commentree.training.checkpointing import run_record, storage
  from commentree.training.warm_starts import writing

  path = storage.as_path(arguments.target)
  if writing.step_of(path) != 0:
    raise UserError(f"{path}: a start has step 0: name it checkpoint_0")
  tree, record, vocabulary = _started(run, _say)
  if arguments.dry_run:
    _say(f"would write {path} ({arguments.to})")
    return 0
  texts = {
    initial_state.WARM_START_FILE: json.dumps(record, indent=2) + "\n",
    **writing.data_state(path),
  }
  writing.write(writing.TreeArrays(tree), path, arguments.to, texts)
  if not (path.parent / "config.gin").exists():
    # `commentree eval` asks the folder for the settings.
    run_record.write_files(path.parent, {**vocabulary, "config.gin": text.encode()})
  _say(f"wrote {path} ({arguments.to}), step 0 with a new optimizer")
  return 0


def _started(run: RunConfig, say: Callable[[str], None]):
  """Returns a run's first state as a checkpoint's tree, its source, its vocabulary."""
  import jax

  from commentree.launch import assemble_run
  from commentree.models.batch import smallest
  from commentree.tasks.seqio_tasks import registration, registry
  from commentree.tasks.vocabulary import vocabulary_files
  from commentree.training import initial_state, partitioning, runtime
  from commentree.training import state as state_lib
  from commentree.training.optim import optimizers, schedules

  config = run.train
  assert config.initial_checkpoint_path is not None
  runtime.set_flags(config.compile_cache_dir)
  registration.register_tasks(run.data)
  (part, *_) = registry.get_parts(run.data.mixture_or_task_name)
  model = assemble_run.build_model(run, part.task)
  mesh = partitioning.make_mesh(config.partitioning)
  schedule = schedules.make_schedule(config.optimizer.schedule, config.last_step)
  optimizer = optimizers.make_optimizer(config.optimizer, schedule)
  batch = smallest()
  params = state_lib.abstract_params(model, batch, mesh, config.partitioning)
  like = state_lib.abstract_state(params, optimizer, mesh, config.partitioning)
  key, _ = state_lib.first_keys(config.random_seed, mesh)

  def draw(names: Sequence[str]) -> dict[str, jax.Array]:
    return state_lib.draw_params(model, batch, params, key, names)

  opened = initial_state.open_plan(
    config, model, config.initial_checkpoint_path, params, say
  )
  taken, plan = initial_state.warm_start(opened, params, draw, say)
  say(plan.summary())
  state = state_lib.initial_state(model, optimizer, batch, like, key, taken)
  tokenizer = part.task.tokenizer
  files = vocabulary_files.to_store(tokenizer.path, tokenizer.content)
  return state_lib.to_tree(state), plan.to_json(), files


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
