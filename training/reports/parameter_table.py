"""The parameters as a table: what each is, how it lies, what it takes of a device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from rich import box
from rich.table import Table

from commentree.console import Console
from commentree.models.batch import smallest
from commentree.models.interface import Model
from commentree.training import partitioning, runtime
from commentree.training import state as state_lib
from commentree.training.config import TrainConfig
from commentree.training.optim import learning_rates, schedules
from commentree.training.optim.optimizers import make_optimizer
from commentree.training.state import TrainState
from commentree.training.warm_starts import apply, assignments, rules

PyTree = Any

# Leaves room for the other columns on a terminal of 80.
_MAX_NAME, _MAX_DIMENSIONS = 28, 25


def describe(config: TrainConfig, model: Model, console: Console) -> None:
  """Prints the shardings of the state on the devices there are, and its initial values.

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
  schedule = schedules.make_schedule(optimizer_config.schedule, config.last_step)
  optimizer = make_optimizer(optimizer_config, schedule)
  like = state_lib.abstract_state(params, optimizer, mesh, config.partitioning)
  multiples = None
  if not learning_rates.is_default(optimizer_config):
    multiples = learning_rates.multiples(optimizer_config, params)
  console.print(
    table(like, state_lib.parameter_axes(model, batch, mesh), mesh, multiples)
  )
  lines = partitioning.report_unsharded(params, mesh, config.partitioning)
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
  """Returns a row for each parameter, or for equal ones of several layers; and sums.

  It fits a terminal of 80 columns.

  Args:
    like: the abstract state, with shardings.
    axes: `params_axes` as the model returns them.
    mesh: the mesh.
    multiples: of the learning rate, by parameter; None if all have the same.
  """
  names_of = partitioning.axis_names(axes)
  params = partitioning.flatten_names(like.params)
  dtypes = {leaf.dtype.name for leaf in params.values()}
  shape = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
  rendered = Table(
    title=f"{', '.join(sorted(dtypes))} parameters on {mesh.size} devices, {shape}",
    box=box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
    pad_edge=False,
  )
  rendered.add_column("name", width=_MAX_NAME)
  rendered.add_column("dimensions", max_width=_MAX_DIMENSIONS, overflow="fold")
  rendered.add_column("sharding", overflow="fold")
  rendered.add_column("bytes per\ndevice", justify="right", no_wrap=True)
  if multiples is not None:
    rendered.add_column("learning\nrate", justify="right", no_wrap=True)
  rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
  for name, leaf in params.items():
    sizes = [f"{n} {axis}" for n, axis in zip(leaf.shape, names_of[name], strict=True)]
    cells = [" x ".join(sizes), _format_spec(leaf.sharding.spec)]
    if len(dtypes) > 1:
      cells[0] = f"{leaf.dtype.name} {cells[0]}"
    cells.append(f"{state_lib.bytes_per_device(leaf):,}")
    if multiples is not None:
      cells.append(learning_rates.in_words(multiples[name]))
    ((template, _),) = rules.collapse([name])
    rows.setdefault((template, tuple(cells)), []).append(name)
  for (_, (dimensions, lies, held, *rate)), names in rows.items():
    times = f"{len(names)} x " if len(names) > 1 else ""
    (name,) = rules.collapsed(names)
    rendered.add_row(_broken(name), dimensions, lies, f"{times}{held}", *rate)
  rendered.add_section()
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf in params.values())
  count = sum(leaf.size for leaf in params.values())
  held = f"{state_lib.bytes_per_device(like.params):,}"
  rendered.add_row(f"{count:,} parameters", f"of {whole:,} bytes", "", held)
  held = f"{state_lib.bytes_per_device(like.optimizer):,}"
  rendered.add_row("optimizer state", "", "", held)
  return rendered


def _broken(name: str) -> str:
  """Returns a long name on several lines, broken at dots and between words."""
  lines = [""]
  for part in re.findall(r"[^._]+[._]*", name):
    if len(lines[-1]) + len(part) > _MAX_NAME and lines[-1].strip():
      lines.append("  ")
    lines[-1] += part
  return "\n".join(lines)


def _format_spec(spec: jax.sharding.PartitionSpec) -> str:
  """Returns the mesh axes of each dimension; `whole` if no dimension is cut."""
  if not any(spec):
    return "whole"
  return ", ".join(
    "+".join(axes) if isinstance(axes, tuple) else str(axes or "-") for axes in spec
  )
