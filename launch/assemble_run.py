"""What verbs run once the settings are sound: data, model and trainer together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from rich.table import Table

from commentree.console import Console
from commentree.errors import UserError
from commentree.launch.settings import early_checks, model_sizes
from commentree.launch.settings.configurables import RunConfig
from commentree.models.batch import smallest
from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel
from commentree.settings import identity
from commentree.tasks import data as data_lib
from commentree.tasks import named_tasks
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.data import Pace, RunData
from commentree.tasks.objectives import label_objectives
from commentree.tasks.sources import generated
from commentree.tasks.sources.tree_sources import BuiltTreesSource, GeneratedTreesSource
from commentree.tasks.tree_task import TreeTask
from commentree.tasks.vocabulary import vocabulary_files
from commentree.training import evaluation, initial_state, partitioning, runtime
from commentree.training import state as state_lib
from commentree.training import train as trainer
from commentree.training.checkpointing import run_record, storage
from commentree.training.checkpointing.run_record import RunRecord
from commentree.training.cluster.distributed import Cluster
from commentree.training.data_input import EvalData, TrainData
from commentree.training.metrics import (
  attention_statistics,
  evaluation_sums,
  regression,
)
from commentree.training.metrics.unigram import UNIGRAM
from commentree.training.optim import optimizers, schedules
from commentree.training.reports import evaluation_report, parameter_table
from commentree.training.reports.clock import Clock

HELD_OUT = "held_out"


def train(run: RunConfig, config_text: str, joined: Cluster, clock: Clock) -> int:
  """Trains with the hosts joined, evaluates and reports; returns the exit code."""
  console = joined.console
  clock.watch = lambda what: joined.watchdog.at(0, what)
  # Before anything is traced: under other switches it would be traced again.
  runtime.set_flags(run.train.compile_cache_dir)
  with clock.on("data"):
    model = build_model(run, named_tasks.find(run.data)[0].task)
    check_model(run, model)
    data = data_lib.open_data(run.data, console)
  tokenizer = data.task.tokenizer
  check_held_out(run, data)
  if not run.data.held_out_share:
    joined.say("HELD_OUT_SHARE = 0: no trees are held out, and nothing is evaluated")
  pace = data.pace(run.train.batch_size)
  joined.say(str(pace))
  run = with_steps(run, pace, joined.say)
  advise_sequence_ends(run, console)
  outcome = trainer.train(
    run.train,
    model,
    train_data(run, data),
    held_out_data(run, data),
    token_groups=token_groups(data),
    epoch_steps=pace.epoch_steps,
    label_names=label_objectives.label_names(data.task.preprocessing),
    count_targets=lambda: count_targets(data),
    fit_datasets=held_out_data(run, data, "train"),
    record=RunRecord(
      facts=facts(model, data),
      config_text=config_text,
      grown_from=tokenizer.grown_from,
      files=vocabulary_files.to_store(tokenizer.path, tokenizer.content),
    ),
    console=console,
    watchdog=joined.watchdog,
    clock=clock,
  )
  if outcome["eval"] and runtime.is_chief():
    joined.watchdog.at(outcome["step"], "data")
    report(run, data, outcome["eval"], console)
  return 0


def with_steps(run: RunConfig, pace: Pace, say: Callable[[str], None]) -> RunConfig:
  """Returns settings with the number of steps that TRAIN_EPOCHS comes to.

  It follows from the data and the batch alone, so that it is the same on every host,
  and when a run goes on.

  Raises:
    UserError: if the data are a mixture's, whose tasks have epochs of their own; or the
      warm-up leaves no step to decay in.
  """
  epochs = run.train.train_epochs
  if epochs is None:
    return run
  if pace.epoch_steps is None:
    raise UserError(
      f"TRAIN_EPOCHS = {epochs}: a mixture has no epoch, since its tasks are read at"
      " rates of their own; give TRAIN_STEPS"
    )
  steps = max(1, round(epochs * pace.epoch_steps))
  config = dataclasses.replace(run.train, train_steps=steps, train_epochs=None)
  say(f"TRAIN_EPOCHS = {epochs:g}: {steps:,} steps")
  config.optimizer.schedule.check_steps(steps)
  for line in early_checks.advice(config):
    say(line)
  return dataclasses.replace(run, train=config)


def check_model(run: RunConfig, model: CommentTreeModel) -> None:
  """Checks, before data are prepared, what follows from the model's shapes.

  Raises:
    UserError: if a parameter cannot be placed on the mesh, a rule of learning rates
      names none, or what the run is to start from does not fit.
  """
  config = run.train
  mesh = partitioning.make_mesh(config.partitioning)
  params = state_lib.abstract_params(model, smallest(), mesh, config.partitioning)
  # The trainer does the same again, and says what it finds.
  fresh = initial_state.find_fresh(config, model, params, lambda line: None)
  schedule = schedules.make_schedule(fresh.optimizer.schedule, config.last_step)
  optimizer = optimizers.make_optimizer(fresh.optimizer, schedule)
  state_lib.abstract_state(params, optimizer, mesh, config.partitioning)


def evaluate(
  run: RunConfig,
  joined: Cluster,
  step: int | Literal["best"] | None,
  batches: int | None,
) -> dict[str, Any]:
  """Evaluates a checkpoint of MODEL_DIR; prints tables and returns the results."""
  console = joined.console
  joined.watchdog.at(0, "data")
  if not run.data.held_out_share:
    raise UserError(
      "HELD_OUT_SHARE = 0: no trees are held out to evaluate on; give others, as with"
      " --gin.FILES='\"other.jsonl\"' --gin.HELD_OUT_SHARE=1.0"
    )
  # Where all trees are held out, none are left to train on.
  splits = ("validation",) if run.data.held_out_share == 1 else ("train", "validation")
  data = data_lib.open_data(run.data, console, splits)
  run_record.check_vocabulary(
    storage.as_path(run.train.model_dir) / "checkpoint", data.facts()
  )
  outcome = evaluation.evaluate_checkpoint(
    run.train.model_dir,
    build_model(run, data.task),
    held_out_data(run, data),
    step=step,
    eval_batches=batches,
    token_groups=token_groups(data),
    label_names=label_objectives.label_names(data.task.preprocessing),
    config=run.train.evaluation,
    partitioning_config=run.train.partitioning,
    best_metric=run.train.checkpoint.best_metric,
    compile_cache_dir=run.train.compile_cache_dir,
    watchdog=joined.watchdog,
  )
  results = outcome["results"]
  joined.watchdog.at(outcome["step"], "data")
  console.print(f"checkpoint {outcome['path']}")
  for name, result in results.items():
    if len(results) > 1:
      console.print(name)
    console.print(evaluation_report.table(result))
    for more in (
      evaluation_report.bags_table(result),
      attention_statistics.table(next(iter(result.values()))),
    ):
      if more is not None:
        console.print(more)
    task = data.parts[held_out_parts(data)[name]].task
    for line in evaluation_report.lines(result, target_kind(task)):
      console.print(line)
  if runtime.is_chief():
    report(run, data, results, console)
  whole = results.get(HELD_OUT, results)
  return {"step": outcome["step"], "path": outcome["path"], **whole}


def train_data(run: RunConfig, data: RunData) -> TrainData:
  """How to open a process's share of the training batches."""
  return lambda share: data.train_batches(
    run.train.batch_size, run.train.random_seed, share.index, share.count
  )


def held_out_data(
  run: RunConfig, data: RunData, split: str = "validation"
) -> dict[str, EvalData]:
  """How to open a process's share of the held-out batches, by name.

  Those of a mixture's tasks are evaluated apart, each by its task's name.

  Args:
    run: the settings.
    data: what the run reads.
    split: "train" for batches of the training data under the same names.
  """

  def opener(part: int) -> EvalData:
    size = run.train.batch_size
    return lambda share: data.eval_batches(size, share.index, share.count, part, split)

  parts = held_out_parts(data)
  return {name: opener(number) for name, number in parts.items()}


def held_out_parts(data: RunData) -> dict[str, int]:
  """Numbers of the tasks that have held-out trees, by the name of their evaluation."""
  alone = len(data.parts) == 1
  return {
    HELD_OUT if alone else part.task.name: number
    for number, part in enumerate(data.parts)
    if "validation" in part.splits
  }


def count_targets(data: RunData) -> dict[str, np.ndarray]:
  """How often each token, or label, is to be predicted in the training data.

  By the names of `held_out_data`; nothing of numbers.
  """
  if not _counts(data):
    return {}
  parts = held_out_parts(data)
  return {name: data.count_targets(number) for name, number in parts.items()}


def _counts(data: RunData) -> bool:
  """Whether what is predicted can be counted, and is not a number."""
  return data.task.preprocessing.objective.name != "regress"


def check_held_out(run: RunConfig, data: RunData) -> None:
  """Makes sure, before anything is trained, that each evaluation has what to measure.

  Raises:
    UserError: naming the task of which nothing is to be predicted in what is evaluated.
  """
  config = run.train
  for number, part in enumerate(data.parts):
    if "validation" not in part.splits:
      continue
    if not data.holds_targets(config.batch_size, config.eval_batches, number):
      built = isinstance(part.task.tree_source, BuiltTreesSource)
      more = (
        "build with a larger --validation_share" if built else "raise HELD_OUT_SHARE"
      )
      raise UserError(
        f"{part.task.name}: the held-out trees that are evaluated have nothing to"
        f" predict: {more}, give more trees, or set HELD_OUT_SHARE = 0 to train without"
        " held-out trees"
      )


def describe(run: RunConfig) -> int:
  """Prints the parameters and their shardings on the devices here."""
  task = named_tasks.find(run.data)[0].task
  console = Console()
  parameter_table.describe(run.train, build_model(run, task), console)
  advise_sequence_ends(run, console)
  return 0


def advise_sequence_ends(run: RunConfig, console: Console) -> None:
  """Says if comments come without the ends that a warm start was trained with."""
  warm = run.train.initial_checkpoint_path is not None
  if (
    warm
    and run.model.family == "roberta"
    and not run.data.preprocessing.subtrees.sequence_ends
  ):
    console.print(
      "RoBERTa and BERT were trained on texts between <s> and </s>, [CLS] and [SEP];"
      " SubtreeConfig.sequence_ends = True puts them around comments",
    )


def build_model(run: RunConfig, task: TreeTask) -> CommentTreeModel:
  """The model, its embedding table as large as the task's vocabulary needs."""
  # Of a mixture, whose first task may know no languages.
  languages = run.model.num_languages or len(run.data.preprocessing.objective.languages)
  return CommentTreeModel(
    with_sizes(dataclasses.replace(run.model, num_languages=languages), task)
  )


def with_sizes(config: ModelConfig, task: TreeTask) -> ModelConfig:
  """The settings of a model, with the sizes that the task's data needs.

  Raises:
    UserError: if the task's objective needs another head.
  """
  vocab_size = task.tokenizer.vocab_size
  return model_sizes.with_sizes(config, task.preprocessing, vocab_size)


def facts(model: CommentTreeModel, data: RunData) -> dict[str, Any]:
  """Settings that decide results: a MODEL_DIR made with others is refused."""
  return {**identity(model.config), **data.facts()}


def token_groups(data: RunData) -> dict[str, Any]:
  """Groups of targets to report apart: each label, or those of the generated trees."""
  if names := label_objectives.label_names(data.task.preprocessing):
    return {name: [label] for label, name in enumerate(names)}
  source = data.task.tree_source
  if not (_counts(data) and isinstance(source, GeneratedTreesSource)):
    return {}
  return generated.token_groups(source.config, data.task.tokenizer)


def report(
  run: RunConfig,
  data: RunData,
  results: Mapping[str, evaluation.Results],
  console: Console,
) -> None:
  """Prints what the losses are to be compared with.

  For masked tokens of generated trees the analytic entropies; else the unigram
  baseline: the loss, on the same tokens, of a model that knows how frequent each is in
  the training data, and nothing else.

  Args:
    run: the settings.
    data: what was evaluated.
    results: by the names of `held_out_data`, in its order.
    console: where to.
  """
  parts = held_out_parts(data)
  for name, result in results.items():
    task = data.parts[parts[name]].task
    source, preprocessing = task.tree_source, task.preprocessing
    all_masks = preprocessing.masking.mask_share == 1
    masked = preprocessing.objective.name == "mlm" and all_masks
    if masked and isinstance(source, GeneratedTreesSource):
      console.print(context_table(result, source.config))
      continue
    first = next(iter(result.values()))
    where = "held-out loss" if name == HELD_OUT else f"{name}: held-out loss"
    beside = ""
    if UNIGRAM in result:
      least = result[UNIGRAM]["loss"]
      beside = f"; a unigram model of the training data has {least:.3f}"
    unit = f"{regression.unit(first)} a {target_kind(task)}"
    console.print(f"{where} {first['loss']:.3f} {unit}{beside}")


def target_kind(task: TreeTask) -> str:
  """What is predicted, in words."""
  if label_objectives.label_names(task.preprocessing):
    return "label"
  if task.preprocessing.objective.name == "regress":
    return "comment"
  return (
    "masked token" if task.preprocessing.objective.name == "mlm" else "target token"
  )


def context_table(results: evaluation.Results, config: GeneratedTreesConfig) -> Table:
  """Held-out loss by ancestor condition, beside what is possible, in nats."""
  analytic = generated.analytic_entropies(config)
  recalls = [generated.recall_group(hop) for hop in config.hops]
  dependent = [name for name in recalls if name in results["true"]["by_group"]]
  conditions = [name for name in results if not evaluation_sums.is_baseline(name)]
  table = Table(
    title="generated trees: does context help?",
    caption="analytic: the least loss possible given those ancestors, in nats",
  )
  table.add_column("ancestors")
  for heading in (
    "loss",
    "analytic",
    "accuracy",
    "loss where ancestors decide",
    "analytic",
    "accuracy",
  ):
    table.add_column(heading, justify="right")
  for condition in conditions:
    result = results[condition]
    cells = []
    for groups in (list(result["by_group"]), dependent):
      slices = [result["by_group"][name] for name in groups]
      tokens = sum(s["tokens"] for s in slices)

      def mean(values, slices=slices, tokens=tokens):
        return sum(v * s["tokens"] for v, s in zip(values, slices)) / max(1, tokens)

      least = "-"
      if condition in analytic[recalls[0]]:
        least = f"{mean([analytic[name][condition] for name in groups]):.3f}"
      cells += [
        f"{mean([s['loss'] for s in slices]):.3f}",
        least,
        f"{mean([s['accuracy'] for s in slices]):.3f}",
      ]
    table.add_row(condition, *cells)
  return table
