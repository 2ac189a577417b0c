"""A run's programs compiled ahead of time, for a TPU slice that is not here.

The train step, the evaluation and the prediction are the very ones that a run
compiles, traced on shapes instead of arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from commentree.errors import UserError
from commentree.models.batch import FLOAT_FEATURES
from commentree.models.interface import Model
from commentree.training import partitioning
from commentree.training import state as state_lib
from commentree.training.config import TrainConfig
from commentree.training.evaluation import Evaluator
from commentree.training.optim import schedules
from commentree.training.optim.optimizers import make_optimizer
from commentree.training.state import TrainState
from commentree.training.step import make_train_step
from commentree.training.tpu_compile import compiled_costs, flops, hlo
from commentree.training.tpu_compile.compiled_report import CompiledReport, Memory
from commentree.training.tpu_compile.topologies import Topology
from commentree.training.tpu_compile.tpu_chips import GIB

Program = Literal["train", "eval", "infer"]

# XLA's levels, and their numbers; 0 leaves the choice to XLA.
Effort = Literal["O0", "O1", "O2", "O3"]
_LEVELS: dict[Effort | None, int] = {None: 0, "O0": 9, "O1": 19, "O2": 29, "O3": 39}
PROGRAMS: tuple[Program, ...] = get_args(Program)


@dataclasses.dataclass(frozen=True)
class CompilePlan:
  """What to compile, and for what.

  Attributes:
    model: the model.
    config: the run's settings; no file that they name is touched.
    feature_shapes: shapes of a forest's features, without the batch's axis.
    comments_per_forest: targets expected in a forest, to count comments by.
    topology: the slices.
  """

  model: Model
  config: TrainConfig
  feature_shapes: Mapping[str, tuple[int, ...]]
  comments_per_forest: float
  topology: Topology

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The mesh over the slices' devices."""
    return partitioning.make_mesh(self.config.partitioning, self.topology.devices)

  @functools.cached_property
  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch's shapes, and where its rows lie.

    Raises:
      UserError: if the batch does not divide over the mesh.
    """
    rows, parts = self.config.batch_size, self.config.gradient_accumulation_steps
    shared = partitioning.batch_parallel(self.mesh) * parts
    if rows % shared:
      raise UserError(
        f"TrainConfig.batch_size = {rows}: must be a multiple of {shared}, the"
        f" data-parallel devices of {self.topology.name} times the microbatches; add"
        f" --gin.BATCH_SIZE={math.ceil(rows / shared) * shared}"
      )
    # Raises as a run does if the hosts cannot share out the examples.
    partitioning.data_share(self.mesh, self.mesh.devices.flat[0].process_index)
    sharding = partitioning.batch_sharding(self.mesh)
    return {
      name: jax.ShapeDtypeStruct(
        (rows, *shape),
        jnp.float32 if name in FLOAT_FEATURES else jnp.int32,
        sharding=sharding,
      )
      for name, shape in self.feature_shapes.items()
    }

  @functools.cached_property
  def params(self) -> Any:
    """The parameters' shapes and shardings."""
    return state_lib.abstract_params(
      self.model, self.batch, self.mesh, self.config.partitioning
    )

  @functools.cached_property
  def state(self) -> TrainState:
    """The training state's shapes and shardings."""
    return state_lib.abstract_state(
      self.params, self._optimizer, self.mesh, self.config.partitioning
    )

  @functools.cached_property
  def _schedule(self) -> schedules.Schedule:
    return schedules.make_schedule(
      self.config.optimizer.schedule, self.config.last_step
    )

  @functools.cached_property
  def _optimizer(self):
    return make_optimizer(self.config.optimizer, self._schedule)

  def lower(self, program: Program) -> jax.stages.Lowered:
    """Traces a program for the slices."""
    step, arguments = self._jitted(program)
    with partitioning.in_mesh(self.mesh, self.config.partitioning):
      return step.lower(*arguments)

  def _jitted(self, program: Program) -> tuple[jax.stages.Wrapped, tuple[Any, ...]]:
    """Returns a jitted function and its abstract arguments."""
    model, config = self.model, self.config
    if program == "train":
      step = make_train_step(
        model, self._optimizer, self._schedule, config, self.mesh, self.state
      )
      return step, (self.state, self.batch, self._key())
    if program == "eval":
      evaluator = Evaluator(model, self.mesh, config.partitioning, config.evaluation)
      # Without the unigram baseline, which costs next to nothing.
      return evaluator.sums, (self.params, self.batch, None)
    return jax.jit(model.predict_batch_with_aux), (self.params, self.batch)

  def _key(self) -> jax.ShapeDtypeStruct:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(
      key.shape, key.dtype, sharding=partitioning.replicated(self.mesh)
    )

  def argument_bytes(self, program: Program) -> int:
    """Returns the bytes of a device's part of a program's arguments."""
    state = self.state if program == "train" else self.params
    return state_lib.bytes_per_device((state, self.batch))


def set_flags() -> None:
  """Sets what a run sets that changes its programs; see `runtime.set_flags`."""
  jax.config.update("jax_threefry_partitionable", True)
  jax.config.update("jax_numpy_rank_promotion", "raise")


def compile_program(
  plan: CompilePlan, program: Program = "train", effort: Effort | None = None
) -> CompiledReport:
  """Compiles a program and reports what it takes; one that does not fit, too.

  Args:
    plan: what, and for what.
    program: which of a run's programs.
    effort: how hard the compiler tries for speed, None as in a run; O1 compiles faster
      what runs several times slower, and takes about the same memory.

  Raises:
    UserError: if the settings do not suit the slices.
  """
  lowered = plan.lower(program)
  started = time.monotonic()
  try:
    options: dict[str, Any] = {"optimization_level": _LEVELS[effort]}
    compiled = lowered.compile(options)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    needed = needed_bytes(str(error), plan.argument_bytes(program))
    return _report(plan, program, started, refusal=needed)
  return _report(plan, program, started, compiled)


def needed_bytes(message: str, argument_bytes: int) -> int | None:
  """Returns what a program that does not fit would need, from the refusal."""
  size = r"([\d.]+)([KMGT]?)"
  if found := re.search(rf"Used {size} of {size} hbm", message):
    return _size_of(*found.groups()[:2])
  if found := re.search(rf"HLO temporaries \({size}\)", message):
    return _size_of(*found.groups()) + argument_bytes
  return None


def _size_of(number: str, unit: str) -> int:
  return int(
    float(number) * {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[unit]
  )


def _memory(stats: Any, limit: int) -> Memory:
  """Returns a compiled program's memory, as XLA's analysis has it."""
  arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
  aliased = stats.alias_size_in_bytes
  temporaries, code = stats.temp_size_in_bytes, stats.generated_code_size_in_bytes
  return Memory(
    arguments=arguments,
    outputs=outputs,
    aliased=aliased,
    temporaries=temporaries,
    code=code,
    needed=arguments + outputs - aliased + temporaries + code,
    limit=limit,
  )


def _report(
  plan: CompilePlan,
  program: Program,
  started: float,
  compiled: jax.stages.Compiled | None = None,
  refusal: int | None = None,
) -> CompiledReport:
  chip = plan.topology.chip
  memory = Memory(
    arguments=plan.argument_bytes(program), needed=refusal, limit=chip.hbm_bytes
  )
  costs = None
  if compiled is not None:
    memory = _memory(compiled.memory_analysis(), chip.hbm_bytes)
    costs = compiled_costs.costs_of(
      hlo.parse(str(compiled.as_text())), plan.mesh.size, plan.topology.num_slices
    )
  # A training step's FLOPs are those forwards three times over.
  model_flops = flops.train_step_flops(plan.model.config, plan.params, plan.batch)
  passes = len(plan.config.evaluation.conditions) if program == "eval" else 1
  if program != "train":
    model_flops *= passes / 3
  return CompiledReport.of(
    program=program,
    topology=plan.topology,
    mesh=dict(plan.mesh.shape),
    parameters=state_lib.count_parameters(plan.params),
    batch_size=plan.config.batch_size,
    comments=plan.comments_per_forest * plan.config.batch_size,
    fits=compiled is not None and memory.suffices,
    memory=memory,
    model_flops=model_flops,
    costs=costs,
    compile_seconds=time.monotonic() - started,
  )
