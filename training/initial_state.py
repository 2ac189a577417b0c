"""Where a run's first state comes from, and saying so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from etils import epath

from commentree import json_shapes
from commentree.errors import UserError
from commentree.models.interface import Model
from commentree.training import state as state_lib
from commentree.training.checkpointing import run_record, saving, storage
from commentree.training.checkpointing.checkpoints import Checkpoints
from commentree.training.checkpointing.run_record import RunRecord
from commentree.training.cluster import hosts
from commentree.training.config import TrainConfig
from commentree.training.optim import learning_rates
from commentree.training.optim.optimizer_config import OptimizerConfig
from commentree.training.state import PyTree, TrainState
from commentree.training.warm_starts import apply, assignments
from commentree.training.warm_starts.formats.array_source import ArraySource
from commentree.training.warm_starts.rules import WarmStartPlan, fresh_of

Opened = tuple[ArraySource, WarmStartPlan]
Say = Callable[[str], None]

WARM_START_FILE = "warm_start.json"
"""In a checkpoint that `commentree convert` made: where its parameters came from."""

_NOTE = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class InitialState:
  """What a run starts from.

  Attributes:
    state: the training state.
    data_state: where the data stood; None for its beginning.
    step: updates done already.
    warm_start: what the run's record keeps of where parameters came from; None if this
      start took none from elsewhere.
  """

  state: TrainState
  data_state: dict[str, Any] | None
  step: int
  warm_start: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Fresh:
  """What a warm start has no array for, and what follows from that.

  Attributes:
    optimizer: settings in which these parameters learn at a rate of their own.
    opened: the files that the run is to start from and their plan, if it is to.
    noted: what a checkpoint of `commentree convert` says of its warm start, for the
      run's record; None if that has it already.
  """

  optimizer: OptimizerConfig
  opened: Opened | None = None
  noted: dict[str, Any] | None = None


def find_fresh(config: TrainConfig, model: Model, params: PyTree, say: Say) -> Fresh:
  """Works out which parameters a warm start has no array for.

  That is what its plan says or, where MODEL_DIR holds checkpoints already, what was
  noted of it there.

  Args:
    config: the settings.
    model: the model.
    params: the abstract parameters.
    say: tells the user a line.

  Raises:
    UserError: on every host, if the files cannot be read or do not fit.
  """
  model_dir = storage.as_path(config.model_dir)

  def read_notes() -> tuple[Any, Any] | None:
    if not (steps := saving.steps_in(model_dir)):
      return None
    recorded = run_record.warm_start_of(model_dir, say)
    if recorded is not None:
      _check_note(model_dir / "run.json", lambda: recorded)
      return recorded, None
    file = saving.path_of(model_dir, steps[0]) / WARM_START_FILE
    if not file.exists():
      return None, None
    noted = _check_note(file, lambda: json_shapes.parse(file.read_bytes(), _NOTE))
    return noted, noted

  opened, noted = None, None
  fresh: list[str] = []
  notes = hosts.run_on_host0("notes of the warm start", read_notes)
  if notes is not None:
    recorded, noted = notes
    fresh = fresh_of(recorded or {})
  elif config.initial_checkpoint_path is not None:
    opened = open_plan(config, model, config.initial_checkpoint_path, params, say)
    fresh = opened[1].fresh()
  optimizer = learning_rates.with_fresh(config.optimizer, fresh)
  if optimizer != config.optimizer:
    say(
      "parameters that the warm start has no array for learn at"
      f" {optimizer.fresh_multiple:g} times the learning rate"
      " (OptimizerConfig.fresh_multiple)"
    )
  return Fresh(optimizer, opened, noted)


def _check_note(file: epath.Path, read: Callable[[], Any]) -> Any:
  """Returns what a file notes of a warm start; raises UserError if it is damaged."""
  try:
    noted = read()
    fresh_of(noted)
  except ValueError as error:
    raise UserError(
      f"{file} is damaged ({storage.reason(error)}): copy it again, or use another"
      " MODEL_DIR"
    ) from error
  return noted


def restore_or_initialize(
  saved: Checkpoints,
  config: TrainConfig,
  model: Model,
  optimizer: optax.GradientTransformation,
  example: Mapping[str, Any],
  like: TrainState,
  key: jax.Array,
  record: RunRecord,
  say: Say,
  opened: Opened | None = None,
) -> InitialState:
  """Restores or draws the state, by the first rule that applies.

  Args:
    saved: the checkpoints in MODEL_DIR.
    config: the settings.
    model: the model.
    optimizer: the optimizer.
    example: a batch, for its shapes.
    like: the abstract state, with shardings.
    key: draws new parameters.
    record: what the run is, its vocabulary among it.
    say: tells the user a line.
    opened: the files of rule 2 and their plan, if they were opened already.

  Raises:
    UserError: if what there is cannot be read or does not fit the model.
  """
  # 1. The newest checkpoint in MODEL_DIR that can be read: parameters, optimizer, step,
  #    and the data continues where it stood.
  restored = saved.restore(like)
  if restored is not None:
    step = int(restored.state.step)
    say(
      f"restored step {step:,} from {restored.path}"
      " (rule 1: the newest checkpoint in MODEL_DIR)"
    )
    return InitialState(restored.state, restored.data_state or None, step)

  # 2. INITIAL_CHECKPOINT_PATH: parameters as its plan says; a new optimizer, step 0,
  #    data from its beginning.
  source = config.initial_checkpoint_path
  if source is not None:
    path = storage.as_path(source)
    hosts.run_on_host0(
      "vocabulary",
      lambda: run_record.check_vocabulary(path, record.facts, say, record.grown_from),
    )

    def draw(names: Sequence[str]) -> dict[str, jax.Array]:
      return state_lib.draw_params(model, example, like.params, key, names)

    opened = opened or open_plan(config, model, source, like.params, say)
    params, plan = warm_start(opened, like.params, draw, say)
    say(
      f"took parameters from {source} (rule 2: initial_checkpoint_path, as MODEL_DIR"
      f" holds no checkpoint); {plan.summary()}"
    )
    state = state_lib.initial_state(model, optimizer, example, like, key, params)
    return InitialState(state, None, 0, plan.to_json())

  # 3. Parameters drawn from the seed.
  say(
    f"drew parameters from seed {config.random_seed} (rule 3: MODEL_DIR holds no"
    " checkpoint)"
  )
  return InitialState(
    state_lib.initial_state(model, optimizer, example, like, key), None, 0
  )


def open_plan(
  config: TrainConfig, model: Model, path: str, like: PyTree, say: Say
) -> Opened:
  """Opens files of another program, or of ours, and plans what to take from them.

  Args:
    config: the settings.
    model: the model.
    path: what `sources.open_source` opens.
    like: the abstract parameters.
    say: tells the user a line.

  Raises:
    UserError: on every host, if the files cannot be read or do not fit.
  """
  specs = apply.specs_of(like)
  opened: list[Opened] = []

  def open_and_plan() -> None:
    opened.append(
      storage.retried(
        f"{path} cannot be read",
        lambda: assignments.plan_for(
          path, specs, config.warm_start_rules, getattr(model, "config", None)
        ),
        config.checkpoint.save_attempts,
        say,
      )
    )

  # Host 0 first, so that what does not fit is reported once.
  hosts.run_on_host0("plan of the warm start", open_and_plan)
  if not opened:
    open_and_plan()
  return opened[0]


def warm_start(
  opened: Opened, like: PyTree, draw: apply.Draw, say: Say
) -> tuple[PyTree, WarmStartPlan]:
  """Takes parameters from files as planned; reports on each.

  Args:
    opened: what `open_plan` returned.
    like: the abstract parameters, with shardings.
    draw: makes those that are new.
    say: tells the user a line.

  Returns:
    The parameters, and where each came from.

  Raises:
    UserError: on every host, if the files cannot be read.
  """
  source, plan = opened
  for line in plan.report():
    say(line)

  def read() -> tuple[dict[str, jax.Array], list[str]]:
    return apply.load(plan, source, like), source.check()

  loaded, odd = hosts.run_on_all_hosts("read the warm start", read)
  for line in odd:
    say(line)
  return apply.complete(plan, loaded, like, draw), plan
