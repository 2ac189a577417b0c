"""Where a run's first state comes from, and saying so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from ..models.interface import Model
from . import hosts, run_record, storage
from . import state as state_lib
from .checkpoints import Checkpoints
from .config import TrainConfig
from .run_record import RunRecord
from .state import PyTree, TrainState
from .warm_starts import apply, assignments
from .warm_starts.rules import Plan
from .warm_starts.sources import ArraySource


@dataclasses.dataclass(frozen=True)
class Start:
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


def first_state(
  saved: Checkpoints,
  config: TrainConfig,
  model: Model,
  optimizer: optax.GradientTransformation,
  example: Mapping[str, Any],
  like: TrainState,
  key: jax.Array,
  record: RunRecord,
  say: Callable[[str], None],
) -> Start:
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

  Raises:
    UserError: if what there is cannot be read or does not fit the model.
  """
  # 1. The newest checkpoint in MODEL_DIR that can be read: parameters, optimizer, step,
  #    and the data goes on where it stood.
  restored = saved.restore(like)
  if restored is not None:
    step = int(restored.state.step)
    say(
      f"restored step {step:,} from {restored.path}"
      " (rule 1: the newest checkpoint in MODEL_DIR)"
    )
    return Start(restored.state, restored.data_state or None, step)

  # 2. INITIAL_CHECKPOINT_PATH: parameters as its plan says; a new optimizer, step 0,
  #    data from its beginning.
  source = config.initial_checkpoint_path
  if source is not None:
    path = storage.as_path(source)
    hosts.chief_decides(
      "vocabulary",
      lambda: run_record.check_vocabulary(path, record.facts, say, record.grown_from),
    )

    def draw(names: Sequence[str]) -> dict[str, jax.Array]:
      return state_lib.draw_params(model, example, like.params, key, names)

    params, plan = warm_start(config, model, source, like.params, draw, say)
    say(
      f"took parameters from {source} (rule 2: initial_checkpoint_path, as MODEL_DIR"
      f" holds no checkpoint); {plan.summary()}"
    )
    state = state_lib.initial_state(model, optimizer, example, like, key, params)
    return Start(state, None, 0, plan.to_json())

  # 3. Parameters drawn from the seed.
  say(
    f"drew parameters from seed {config.random_seed} (rule 3: MODEL_DIR holds no"
    " checkpoint)"
  )
  return Start(state_lib.initial_state(model, optimizer, example, like, key), None, 0)


def warm_start(
  config: TrainConfig,
  model: Model,
  path: str,
  like: PyTree,
  draw: apply.Draw,
  say: Callable[[str], None],
) -> tuple[PyTree, Plan]:
  """Takes parameters from files of another program, or of ours; reports on each.

  Args:
    config: the settings.
    model: the model.
    path: what `sources.open_source` opens.
    like: the abstract parameters, with shardings.
    draw: makes those that are new.
    say: tells the user a line.

  Returns:
    The parameters, and where each came from.

  Raises:
    UserError: on every host, if the files cannot be read or do not fit.
  """
  specs = apply.specs_of(like)
  opened: list[tuple[ArraySource, Plan]] = []

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

  # Host 0 first, so that what does not fit is told once.
  hosts.chief_decides("plan of the warm start", open_and_plan)
  if not opened:
    open_and_plan()
  source, plan = opened[0]
  for line in plan.report():
    say(line)

  def read() -> tuple[dict[str, jax.Array], list[str]]:
    return apply.load(plan, source, like), source.check()

  loaded, odd = hosts.all_or_none("read the warm start", read)
  for line in odd:
    say(line)
  return apply.complete(plan, loaded, like, draw), plan
