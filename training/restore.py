"""Where a run's first state comes from, and saying so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from ..models.interface import Model
from . import checkpoints, hosts, run_record, storage
from . import state as state_lib
from .checkpoints import Checkpoints
from .config import TrainConfig
from .state import TrainState


@dataclasses.dataclass(frozen=True)
class Start:
  """What a run starts from.

  Attributes:
    state: the training state.
    data_state: where the data stood; None for its beginning.
    step: updates done already.
  """

  state: TrainState
  data_state: dict[str, Any] | None
  step: int


def first_state(
  saved: Checkpoints,
  config: TrainConfig,
  model: Model,
  optimizer: optax.GradientTransformation,
  example: Mapping[str, Any],
  like: TrainState,
  key: jax.Array,
  facts: Mapping[str, Any],
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
    facts: settings that decide results, the vocabulary among them.
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
    return Start(restored.state, restored.data_state, step)

  # 2. The initial checkpoint: its parameters alone; step 0, data from its beginning.
  source = config.initial_checkpoint_path
  if source is not None:
    path = storage.as_path(source)
    hosts.chief_decides(
      "vocabulary", lambda: run_record.check_vocabulary(path, facts, say)
    )
    params = checkpoints.restore_params(path, like.params)
    say(
      f"took parameters from {source} (rule 2: initial_checkpoint_path, as MODEL_DIR"
      " holds no checkpoint)"
    )
    state = state_lib.initial_state(model, optimizer, example, like, key, params)
    return Start(state, None, 0)

  # 3. Parameters drawn from the seed.
  say(
    f"drew parameters from seed {config.random_seed} (rule 3: MODEL_DIR holds no"
    " checkpoint)"
  )
  return Start(state_lib.initial_state(model, optimizer, example, like, key), None, 0)
