"""Training, told from top to bottom: mesh, data, state, restore, reports, loop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from commentree.console import Console
from commentree.errors import UserError, exit_code_of
from commentree.models.interface import Model
from commentree.training import data_input, initial_state, partitioning, runtime
from commentree.training import state as state_lib
from commentree.training.checkpointing import (
  checkpoint_choice,
  checkpoints,
  model_dir_lock,
  run_record,
  storage,
)
from commentree.training.checkpointing.run_record import RunRecord
from commentree.training.cluster import hosts
from commentree.training.cluster.agreement import AsyncHostMax, HostMax
from commentree.training.cluster.coordination.host_log import HostConsole
from commentree.training.cluster.coordination.watchdog import Watchdog
from commentree.training.cluster.signals import StopRequest
from commentree.training.config import TrainConfig
from commentree.training.data_input import EvalData, Prefetcher, TrainData
from commentree.training.evaluation import Evaluator, TokenGroups
from commentree.training.metrics import baselines, f1, regression
from commentree.training.metrics.evaluation_sums import Results
from commentree.training.optim import learning_rates, schedules
from commentree.training.optim.optimizers import make_optimizer
from commentree.training.reports.clock import Clock
from commentree.training.reports.evaluation_report import flat_metrics
from commentree.training.reports.metrics_log import MetricsLog
from commentree.training.reports.reporting import Reporter
from commentree.training.reports.step_profile import StepProfile
from commentree.training.step import make_train_step
from commentree.training.step_compilation import StepCompilation
from commentree.training.tpu_compile import flops
from commentree.training.trackers import background
from commentree.training.trackers.tracker import TrackedRun


def train(
  config: TrainConfig,
  model: Model,
  open_train_batches: TrainData,
  eval_datasets: Mapping[str, EvalData] | None = None,
  *,
  epoch_steps: int | None = None,
  token_groups: TokenGroups | None = None,
  label_names: Sequence[str] = (),
  count_targets: Callable[[], baselines.Counts] = dict,
  fit_datasets: Mapping[str, EvalData] | None = None,
  record: RunRecord | None = None,
  console: Console | None = None,
  watchdog: Watchdog | None = None,
  clock: Clock | None = None,
) -> dict[str, Any]:
  """Trains, continuing the run in MODEL_DIR if there is one.

  Args:
    config: the settings.
    model: the model.
    open_train_batches: opens this process's batches, endless and seekable.
    eval_datasets: held-out data by name; the first decides which checkpoint is best.
    epoch_steps: steps of a pass over the training data, if that is known.
    token_groups: ids of target tokens to report apart, by name.
    label_names: names of the labels that a head predicts, by number.
    count_targets: counts the targets of the training data, for the datasets that are
      to be compared with baselines; asked once in a run's life.
    fit_datasets: training data of these, in batches as for evaluations, which the
      weights of bags of words are fitted to; without bags where there are none.
    record: the caller's settings that decide results, and the gin text.
    console: for people; stdout of host 0 if None.
    watchdog: receives progress, and knows the other hosts; none if None.
    clock: runs since the command began; since now if None.

  Returns:
    `step`, `train` (the last step's row of metrics.jsonl), `eval` (the last
    evaluation's results by dataset) and `seconds` by what they were spent on.

  Raises:
    UserError: for anything the user can mend, a loss that is not finite included.
    SystemExit: with 143 after SIGTERM and 130 after SIGINT, once a checkpoint is
      saved.
  """
  f1.check_best_metric(config.checkpoint, label_names)
  regression.check_best_metric(config.checkpoint, model.config)
  runtime.set_flags(config.compile_cache_dir)
  watchdog = watchdog or Watchdog(config.health)
  step = 0
  clock = clock or Clock()
  clock.watch = lambda what: watchdog.at(step, what)
  console = console or HostConsole(chief=runtime.is_chief())
  eval_datasets = eval_datasets or {}
  record = record or RunRecord()
  facts = {**record.facts, **run_record.training_facts(config)}
  model_dir = storage.as_path(config.model_dir)

  def say(line: str) -> None:
    console.print(line)

  watchdog.agree({**facts, **dataclasses.asdict(config)}, "settings")
  with contextlib.ExitStack() as stack, watchdog.ends_on_error():
    stop = stack.enter_context(StopRequest())
    storage.check_shared(model_dir)
    hosts.run_on_host0(
      "lock", lambda: stack.enter_context(model_dir_lock.exclusive(model_dir))
    )
    hosts.run_on_host0("settings", lambda: run_record.check(model_dir, facts, say))

    # ---- Mesh and data ----------------------------------------------------------
    mesh = partitioning.make_mesh(config.partitioning)
    share = partitioning.data_share(mesh)
    data_input.check_batch_size(
      config.batch_size, mesh, config.gradient_accumulation_steps
    )
    with clock.on("input"):
      train_batches = open_train_batches(share)
      example = data_input.peek(train_batches)
    data_input.check_rows(example, config.batch_size, mesh)

    # ---- State: its shapes, and where each part lies ----------------------------
    params = state_lib.abstract_params(model, example, mesh, config.partitioning)
    fresh = initial_state.find_fresh(config, model, params, say)
    config = dataclasses.replace(config, optimizer=fresh.optimizer)
    schedule = schedules.make_schedule(config.optimizer.schedule, config.last_step)
    optimizer = make_optimizer(config.optimizer, schedule)
    like = state_lib.abstract_state(params, optimizer, mesh, config.partitioning)
    say(
      f"{partitioning.describe(mesh)};"
      f" {state_lib.count_parameters(params):,} parameters"
      f"{learning_rates.how_many_trained(config.optimizer, params)}"
    )
    for line in partitioning.report_unsharded(params, mesh, config.partitioning):
      say(line)

    # ---- Compile, in a thread ---------------------------------------------------
    init_key, step_key = state_lib.first_keys(config.random_seed, mesh)
    saved = checkpoints.Checkpoints(model_dir, config.checkpoint, say)
    stack.callback(saved.close)
    train_step = make_train_step(model, optimizer, schedule, config, mesh, like)

    def lower() -> jax.stages.Lowered:
      batch_like = data_input.abstract_batch(example, mesh)
      with partitioning.in_mesh(mesh, config.partitioning):
        return train_step.lower(like, batch_like, step_key)

    compilation = stack.enter_context(StepCompilation(lower))
    if not _is_over(config, saved.newest or 0, saved.best().step):
      with clock.on("compile"):
        compilation.begin()

    # ---- Restore or initialize --------------------------------------------------
    with clock.on("state"):
      start = initial_state.restore_or_initialize(
        saved,
        config,
        model,
        optimizer,
        example,
        like,
        init_key,
        record,
        say,
        fresh.opened,
      )
    state, step, last_step = start.state, start.step, config.last_step
    if start.data_state is not None:
      train_batches.set_state(start.data_state)

    # ---- Reports ----------------------------------------------------------------
    log, trackers = None, []
    if runtime.is_chief():
      warm_start = start.warm_start or fresh.noted
      run_record.write(model_dir, record, facts, step, say, warm_start)
      log = MetricsLog(model_dir / "metrics.jsonl", step, say)
      tracked = TrackedRun(model_dir, config.tracker_project)
      settings = {**facts, "TrainConfig.train_steps": last_step}
      trackers = background.open_trackers(config, tracked, settings, say)
    report = Reporter(
      config,
      console,
      clock,
      log,
      trackers,
      start_step=step,
      epoch_steps=epoch_steps,
      utilization_per_rate=flops.utilization_per_rate(model, params, example, mesh),
    )
    stack.push(lambda kind, error, trace: report.close(exit_code_of(error)))

    # ---- Evaluation -------------------------------------------------------------
    evaluator = Evaluator(
      model, mesh, config.partitioning, config.evaluation, token_groups, label_names
    )

    def asked_to_stop() -> bool:
      watchdog.at(step, "eval")
      return bool(stop)

    @functools.cache
    def known() -> baselines.Baselines:
      with_bags = evaluator.has_bags and bool(fit_datasets)
      fitted = fit_datasets if with_bags and fit_datasets else {}
      return baselines.load_or_make(
        model_dir,
        mesh,
        lambda: baselines.make(
          count_targets(),
          {name: dataset(share) for name, dataset in fitted.items()},
          mesh,
          config.partitioning,
        ),
        with_bags=with_bags,
        writes=runtime.is_chief() and bool(eval_datasets),
        say=say,
      )

    def evaluate() -> dict[str, Results]:
      """Returns results by dataset; nothing if asked to stop on the way."""
      results = {}
      for name, dataset in eval_datasets.items():
        with clock.on("eval"):
          result = evaluator(
            state_lib.eval_params(state),
            dataset(share),
            config.eval_batches,
            asked_to_stop,
            known().get(name),
          )
        if result is None:
          return {}
        results[name] = result
      report.evaluation(step, results)
      return results

    best = saved.best()
    if _is_over(config, step, best.step):
      done = (
        _no_better_message(config, best.step)
        if config.patience_is_over(step, best.step)
        else f"step {step:,} of {last_step:,} is done"
      )
      say(f"nothing to train: {done}")
      results = evaluate()
      return _summary(step, report, results, HostMax(mesh)(stop.number))

    # ---- The first batch, and the compiled step ---------------------------------
    batches = stack.enter_context(Prefetcher(train_batches, mesh))
    with clock.on("input"):
      batch, data_state = next(batches)
    with clock.on("compile"):
      compiled_step = compilation.result()
      hosts.barrier("train step compiled", config.health.allowance("compile"))

    # ---- Loop -------------------------------------------------------------------
    agreement = AsyncHostMax(mesh, 2)
    profile = StepProfile(
      config.profile_steps, model_dir / "profile" / f"host_{jax.process_index()}", say
    )
    stack.callback(profile.close)
    last_timed_save = step

    def save(metrics: checkpoint_choice.Metrics | None) -> None:
      if log is not None:
        log.sync(upload=True)
      with clock.on("checkpoint"):
        saved.save(state, step, data_state, metrics)

    def save_in_emergency() -> None:
      """Saves what an error would cost, where no other host need take part."""
      if jax.process_count() > 1 or checkpoints.is_deleted(state):
        return
      if report.flush() is None or not config.stop_on_nonfinite:
        save(None)
        say(f"an error ends the run: step {step:,} saved as {saved.wait()}")

    while True:
      with profile.on(step + 1, state), jax.transfer_guard("disallow"):
        state, sums = compiled_step(state, batch, step_key)
      step += 1
      watchdog.at(step, "step")
      profile.after(step, sums)
      report.step(step, sums)

      stopping, overdue = agreement(stop.number, saved.due_by_time())
      ends = step == last_step or bool(stopping)
      logs = ends or step % config.log_period == 0
      evaluates = step == last_step or _due(step, config.eval_period)
      # Votes from before the last timed save are stale.
      timed = bool(overdue) and step > last_timed_save + agreement.delay
      last_timed_save = step if timed else last_timed_save
      saves = ends or timed or _due(step, config.checkpoint.period)
      if logs or evaluates or saves:
        # Before anything is saved, the losses that led to it are known and on disk.
        not_finite = report.flush()
        if not_finite and config.stop_on_nonfinite:
          raise UserError(_not_finite_message(not_finite, saved.wait()))
      if logs:
        report.progress(step)
      results, metrics = {}, None
      if evaluates:
        with _first(save_in_emergency):
          results = evaluate()
      if results:
        metrics = flat_metrics(next(iter(results.values())))
        quality = checkpoint_choice.quality(metrics, config.checkpoint.best_metric)
        if config.checkpoint.keep_best > 0 and quality > best.quality:
          best, saves = checkpoint_choice.Best(step, quality), True
        if not ends and config.patience_is_over(step, best.step):
          say(f"step {step:,} ends the run: {_no_better_message(config, best.step)}")
          ends = saves = True
      if saves:
        save(metrics)
      if ends:
        break
      with clock.on("input"), _first(save_in_emergency):
        batch, data_state = next(batches)

    # ---- End --------------------------------------------------------------------
    with clock.on("checkpoint"):
      path = saved.wait()
    say(f"step {step:,} saved as {path}")
    return _summary(step, report, results, HostMax(mesh)(stop.number))


@contextlib.contextmanager
def _first(act: Callable[[], None]) -> Iterator[None]:
  """Runs a callback, then re-raises."""
  try:
    yield
  except Exception:
    act()
    raise


def _is_over(config: TrainConfig, step: int, best_step: int | None) -> bool:
  """Whether a run that stands at a step has none left."""
  return step >= config.last_step or config.patience_is_over(step, best_step)


def _due(step: int, period: int) -> bool:
  return period > 0 and step % period == 0


def _summary(
  step: int, report: Reporter, results: dict[str, Results], signals: tuple[int, ...]
) -> dict[str, Any]:
  seconds = report.finish()
  if signals[0]:
    raise SystemExit(128 + signals[0])
  return {"step": step, "train": report.last_row, "eval": results, "seconds": seconds}


def _no_better_message(config: TrainConfig, best_step: int | None) -> str:
  """Says why a run ends before its last step."""
  return (
    f"no better {config.checkpoint.best_metric} since step {best_step:,}"
    f" (TrainConfig.patience = {config.patience})"
  )


def _not_finite_message(step: int, path: epath.Path | None) -> str:
  good = (
    f"the last good checkpoint is {path}" if path else "no checkpoint was saved yet"
  )
  start = f" with initial_checkpoint_path = '{path}'" if path else ""
  return (
    f"step {step}: the loss or its gradient is not finite; {good}. Lower the learning"
    f" rate in a new MODEL_DIR{start}, or set stop_on_nonfinite = False to skip such"
    " steps"
  )
