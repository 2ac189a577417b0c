"""The parameters as a table: what each is, how it lies, what it takes of a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from rich.table import Table

from ..console import Console
from ..models.batch import smallest
from ..models.interface import Model
from . import learning_rates, partitioning, runtime, schedules
from . import state as state_lib
from .config import TrainConfig
from .optimizers import make_optimizer
from .state import TrainState
from .warm_starts import apply, assignments

PyTree = Any


def describe(config: TrainConfig, model: Model, console: Console) -> None:
  """Prints how the state would lie on the devices there are, and where it would start.

  Trains nothing.

  Args:
    config: the settings.
    model: the model.
    console: for people.

  Raises:
    UserError: if a parameter cannot be placed on the mesh, or the initial checkpoint
      does not fit.
  """
  runtime.set_flags(config.compile_cache_dir)
  mesh = partitioning.make_mesh(config.partitioning)
  batch = smallest()
  params = state_lib.abstract_params(model, batch, mesh, config.partitioning)
  optimizer_config, plan = config.optimizer, None
  if (source := config.initial_checkpoint_path) is not None:
    specs = apply.specs_of(params)
    _, plan = assignments.plan_for(
      source, specs, config.warm_start_rules, getattr(model, "config", None)
    )
    optimizer_config = learning_rates.with_fresh(optimizer_config, plan.fresh())
  schedule = schedules.make_schedule(optimizer_config.schedule, config.train_steps)
  optimizer = make_optimizer(optimizer_config, schedule)
  like = state_lib.abstract_state(params, optimizer, mesh)
  multiples = None
  if not learning_rates.is_default(optimizer_config):
    multiples = learning_rates.multiples(optimizer_config, params)
  console.print(table(like, state_lib.parameter_axes(model, batch), mesh, multiples))
  lines = partitioning.left_whole(params, mesh, config.partitioning)
  if plan is not None:
    lines += [f"a new MODEL_DIR would start from {source}, a {plan.kind}:"]
    lines += [*plan.report(), plan.summary()]
  for line in lines:
    console.print(line)


def table(
  like: TrainState,
  axes: PyTree,
  mesh: Mesh,
  multiples: Mapping[str, learning_rates.Multiple] | None = None,
) -> Table:
  """Returns a row for each parameter, and the sums.

  Args:
    like: the abstract state, with shardings.
    axes: `params_axes` as the model returns them.
    mesh: the mesh.
    multiples: of the learning rate, by parameter; None if all have the same.
  """
  names_of = partitioning.axis_names(axes)
  params = partitioning.flatten_names(like.params)
  shape = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
  rendered = Table(title=f"parameters on {mesh.size} devices, {shape}")
  for heading in ("name", "shape", "dtype", "logical axes", "sharding"):
    rendered.add_column(heading, overflow="fold")
  rendered.add_column("bytes per device", justify="right")
  if multiples is not None:
    rendered.add_column("learning rate", justify="right")
  for name, leaf in params.items():
    rendered.add_row(
      name,
      " x ".join(map(str, leaf.shape)),
      leaf.dtype.name,
      ", ".join(map(str, names_of[name])),
      _lies(leaf.sharding.spec),
      f"{state_lib.bytes_per_device(leaf):,}",
      *([] if multiples is None else [learning_rates.in_words(multiples[name])]),
    )
  rendered.add_section()
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf in params.values())
  count = sum(leaf.size for leaf in params.values())
  held = state_lib.bytes_per_device(like.params)
  rendered.add_row(
    f"{count:,} parameters", "", "", "", f"of {whole:,} bytes", f"{held:,}"
  )
  rendered.add_row(
    "optimizer state", *[""] * 4, f"{state_lib.bytes_per_device(like.optimizer):,}"
  )
  return rendered


def _lies(spec: jax.sharding.PartitionSpec) -> str:
  """Returns the mesh axes of each dimension; `whole` if no dimension is cut."""
  if not any(spec):
    return "whole"
  return ", ".join(
    "+".join(axes) if isinstance(axes, tuple) else str(axes or "-") for axes in spec
  )
