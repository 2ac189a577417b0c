"""Mistakes that are reported before TensorFlow loads and data are read.

Each check takes what is cheap by then: settings and the names of files first, then JAX,
then the devices, then the model's shapes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from commentree.errors import UserError, suggestion
from commentree.launch.settings import model_sizes
from commentree.launch.settings.configurables import RunConfig
from commentree.settings import identity
from commentree.tasks.config import mixture_config
from commentree.tasks.data_config import DataConfig
from commentree.tasks.objectives import label_objectives
from commentree.training.config import TrainConfig
from commentree.training.optim import optimizer_names
from commentree.training.trackers import tracker

_OWN_TASKS = (mixture_config.FILES, mixture_config.GENERATED, mixture_config.MIXTURE)


def check_settings(run: RunConfig) -> None:
  """Checks what needs neither JAX nor TensorFlow.

  Raises:
    UserError: if the task, a tracker or the optimizer is unknown, the warm-up leaves no
      step to decay in, files are not there, the model's head is not that of the
      objective, or comments see too few ancestors to match replies, or for layers along
      the thread.
  """
  optimizer_names.check(run.train.optimizer.name)
  tracker.check(run.train.trackers)
  run.train.optimizer.schedule.check_steps(run.train.last_step)
  check_data(run.data)
  most = run.data.layout.max_ancestors
  if run.model.reply_matching_weight and most < 2:
    raise UserError(
      f"MAX_ANCESTORS = {most}: must be at least 2 with"
      " ModelConfig.reply_matching_weight, which matches the comment that a target"
      " answers to what is above it"
    )
  if run.model.num_thread_layers and most < 2:
    raise UserError(
      f"MAX_ANCESTORS = {most}: must be at least 2 with ModelConfig.num_thread_layers,"
      " in which a target's ancestors attend to each other"
    )
  for objective in run.data.objective_names:
    model_sizes.check_head(run.model, objective)


def check_data(config: DataConfig) -> None:
  """Checks names of tasks and files; reads no tree.

  Raises:
    UserError: naming the task or file that is not there.
  """
  from commentree.tasks import readers
  from commentree.tasks.dataset_files import built_dataset
  from commentree.tasks.subtrees import discourse
  from commentree.tasks.vocabulary import vocabulary_files

  name = config.mixture_or_task_name
  if name not in _OWN_TASKS and name not in _registered():
    raise UserError(
      f"MIXTURE_OR_TASK_NAME = {name!r}: no such task of comment trees, nor mixture;"
      f" there are {', '.join(_OWN_TASKS)}, and those that a module registers which a"
      f" gin file imports{suggestion(name, _OWN_TASKS)}"
    )
  for setting, files in _files(config):
    with _named(setting):
      if built_dataset.find(files) is None:
        readers.expand(files)
  if config.vocabulary is not None:
    with _named("VOCABULARY"):
      vocabulary_files.check_there(config.vocabulary)
  if config.preprocessing.discourse.file is not None:
    discourse.read_phrases(config.preprocessing.discourse.file)


def _registered() -> set[str]:
  """Names that a module has registered with SeqIO which a gin file imports."""
  seqio = sys.modules.get("seqio")
  if seqio is None:
    return set()
  return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}


def _files(config: DataConfig) -> Iterator[tuple[str, str | Sequence[str]]]:
  """The files that a run reads, each with the setting that names them."""
  sources = {member.source for member in config.members()}
  if config.files and mixture_config.FILES in (*sources, config.mixture_or_task_name):
    yield "FILES", config.files
  for name, files in (config.corpora or {}).items():
    yield f"CORPORA[{name!r}]", files


@contextlib.contextmanager
def _named(setting: str) -> Iterator[None]:
  """Begins the message of an error with the setting that it is about."""
  try:
    yield
  except UserError as error:
    if str(error).startswith(setting):
      raise
    raise UserError(f"{setting}: {error}") from error


def check_training(run: RunConfig) -> None:
  """Checks what JAX's libraries know, without a device.

  Raises:
    UserError: if the optimizer or its schedule cannot be made, MODEL_DIR holds a run
      with other settings, or INITIAL_CHECKPOINT_PATH cannot be read.
  """
  from commentree.training.checkpointing import storage
  from commentree.training.metrics import f1, matching_statistics, regression
  from commentree.training.optim import optimizers, schedules

  config = run.train
  schedule = schedules.make_schedule(config.optimizer.schedule, config.last_step)
  optimizers.make_optimizer(config.optimizer, schedule)
  f1.check_best_metric(
    config.checkpoint,
    label_objectives.label_names(run.data.preprocessing, run.data.objective_names[0]),
  )
  matching_statistics.check_best_metric(config.checkpoint, run.model)
  regression.check_best_metric(config.checkpoint, run.model)
  model_dir = storage.as_path(config.model_dir)
  if not storage.is_remote(model_dir) and any(model_dir.glob("checkpoint_*")):
    from commentree.training.checkpointing import run_record

    model = identity(run.model)
    for name in model_sizes.FROM_DATA:
      del model[f"ModelConfig.{name}"]
    facts = {**model, **run_record.training_facts(config)}
    run_record.check(model_dir, facts, part=True)
    return
  path = config.initial_checkpoint_path
  # One in a bucket is opened with patience, once the model is known: see `job`.
  if path is not None and not storage.is_remote(storage.as_path(path)):
    from commentree.training.warm_starts import sources

    with _named("INITIAL_CHECKPOINT_PATH"):
      sources.open_source(path)


def check_devices(config: TrainConfig) -> None:
  """Checks what the devices of all hosts, once joined, can share.

  Raises:
    UserError: if mesh or batch do not fit them, or MODEL_DIR cannot be written.
  """
  import jax

  from commentree.tasks.forests import stream_shares
  from commentree.training import data_input, partitioning
  from commentree.training.checkpointing import storage

  mesh = partitioning.make_mesh(config.partitioning)
  share = partitioning.data_share(mesh)
  data_input.check_batch_size(
    config.batch_size, mesh, config.gradient_accumulation_steps
  )
  stream_shares.own_streams(config.batch_size, share.index, share.count)
  if jax.process_count() == 1:
    storage.check_writable(storage.as_path(config.model_dir))


def advice(config: TrainConfig) -> list[str]:
  """What is allowed, and hardly meant: a line each."""
  schedule = config.optimizer.schedule
  if schedule.warmup_steps <= config.last_step:
    return []
  share = config.last_step / schedule.warmup_steps
  return [
    f"WARMUP_STEPS = {schedule.warmup_steps:,} exceeds TRAIN_STEPS ="
    f" {config.last_step:,}: the learning rate ends at {100 * share:.2g}% of its peak"
  ]
