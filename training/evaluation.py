"""Does context help? Held-out loss under the four ancestor conditions.

Every masked token counts the same. Results are reported over all tokens, by the depth
of the comment they stand in, and by groups of target tokens that the caller names; with
a head, for which labels stand where tokens do, also as F1 (`f1`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from ..errors import UserError
from ..models.interface import Model
from . import checkpoints, data_input, f1, hosts, partitioning, runtime, storage
from . import state as state_lib
from .agreement import Agreement
from .config import BestMetric, EvalConfig, HealthConfig, PartitioningConfig
from .data_input import EvalData, HostBatch
from .watchdog import Watchdog

TokenGroups = Mapping[str, Sequence[int] | np.ndarray]
Results = dict[str, Any]
"""By condition: `loss` (nats), `accuracy`, `tokens`, and of the same `by_depth` and
`by_group`, those with at least one token; with a head `f1`, for tags `span_f1` as well,
see `f1.Scores`."""

Sums = dict[str, dict[str, Any]]

_PER_SLICE = ("loss", "accuracy", "tokens")


class Evaluator:
  """Evaluates parameters; compiled once.

  Attributes:
    sums: the jitted pass over a placed batch, `(params, batch)` to sums by condition.
  """

  def __init__(
    self,
    model: Model,
    mesh: Mesh,
    partitioning_config: PartitioningConfig,
    config: EvalConfig,
    token_groups: TokenGroups | None = None,
    label_names: Sequence[str] = (),
  ):
    """Compiles nothing yet.

    Args:
      model: the model.
      mesh: the mesh.
      partitioning_config: the rules.
      config: what to measure.
      token_groups: ids of target tokens to report apart, by name.
      label_names: names of the labels that a head predicts, by number.
    """
    self._mesh = mesh
    self._partitioning = partitioning_config
    self._config = config
    self._groups = {
      name: np.unique(np.asarray(ids, np.int32))
      for name, ids in (token_groups or {}).items()
    }
    self._labels = tuple(label_names)
    self._depths = depth_names(config.depth_edges)
    self._compiled: jax.stages.Compiled | None = None
    self._place = data_input.Placer(mesh)
    self._agreement = Agreement(mesh)
    self.sums = jax.jit(
      self._make_sums(model), out_shardings=partitioning.replicated(mesh)
    )

  def __call__(
    self,
    params: Any,
    batches: Iterable[HostBatch],
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
  ) -> Results | None:
    """Evaluates.

    Args:
      params: the parameters.
      batches: this process's share of the held-out batches, at least one.
      limit: most batches; None for all.
      stop: asked before every batch; if any process's says so, all stop.

    Returns:
      The results, or None if stopped.

    Raises:
      UserError: if no batch holds a masked token.
    """
    totals: Any = None
    padding: HostBatch = {}
    for batch in itertools.chain(
      itertools.islice(batches, limit), itertools.repeat(None)
    ):
      # Hosts run out of batches at different times, and all must take part in each.
      more, stopped = self._agreement(batch is not None, stop())
      if stopped:
        return None
      if not more:
        break
      if batch is not None:
        padding = {name: np.zeros_like(values) for name, values in batch.items()}
      placed = self._place(padding if batch is None else batch)
      if self._compiled is None:
        with partitioning.in_mesh(self._mesh, self._partitioning):
          self._compiled = self.sums.lower(params, placed).compile()
        hosts.meet("evaluation compiled")
      sums = jax.device_get(self._compiled(params, placed))
      # float64 on the host: thousands of batches add up.
      sums = jax.tree.map(lambda x: x.astype(np.float64), sums)
      totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
    return {
      name: self._results(totals and totals[name]) for name in self._config.conditions
    }

  def _make_sums(self, model: Model):
    edges = jnp.asarray(self._config.depth_edges)
    members = _group_table(self._groups)

    def sums(params: Any, batch: Mapping[str, jax.Array]) -> Sums:
      targets = batch["decoder_target_tokens"].reshape(-1)
      in_group = jnp.asarray(members)[jnp.minimum(targets, len(members) - 1)]
      by_condition: Sums = {}
      for condition in self._config.conditions:
        tokens = model.evaluate_batch(params, batch, condition)
        counts = f1.sums(tokens, self._labels)
        tokens = {name: values.reshape(-1) for name, values in tokens.items()}
        weights = tokens["weights"]
        depth = jnp.searchsorted(edges, tokens["depths"], side="right") - 1
        slices = [
          jnp.ones((len(weights), 1)),
          jax.nn.one_hot(depth, len(edges)),
          in_group,
        ]
        values = jnp.stack([tokens["nll"], tokens["correct"], jnp.ones_like(weights)])
        by_slice = jnp.matmul(
          # 0 times a loss that is not finite is not 0.
          jnp.where(weights[None] > 0, values * weights[None], 0),
          jnp.concatenate(slices, axis=1),
          precision=jax.lax.Precision.HIGHEST,
        )
        by_condition[condition] = {"slices": by_slice, "counts": counts}
      return by_condition

    return sums

  def _results(self, totals: Mapping[str, Any] | None) -> dict[str, Any]:
    if totals is None or totals["slices"][2, 0] == 0:
      what = "label" if self._labels else "masked token"
      raise UserError(f"the evaluation data holds no {what}: give more trees")
    total = totals["slices"]

    def result(column: int) -> dict[str, float]:
      nll, correct, tokens = total[:, column]
      values = (float(nll / tokens), float(correct / tokens), int(tokens))
      return dict(zip(_PER_SLICE, values))

    def named(names: Iterable[str], first: int) -> dict[str, dict[str, float]]:
      return {
        name: result(first + i)
        for i, name in enumerate(names)
        if total[2, first + i] > 0
      }

    return {
      **result(0),
      "by_depth": named(self._depths, 1),
      "by_group": named(self._groups, 1 + len(self._depths)),
      **f1.results(totals["counts"], self._labels),
    }


def depth_names(edges: Sequence[int]) -> list[str]:
  """Returns names of groups of depths: 0, 1, 2, 3, 4-5, 6-9, 10+."""
  names = [
    str(low) if high == low + 1 else f"{low}-{high - 1}"
    for low, high in itertools.pairwise(edges)
  ]
  return [*names, f"{edges[-1]}+"]


def _group_table(groups: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns 1 where a token is in a group, `[tokens, groups]`; the last row is 0."""
  size = max((int(ids.max(initial=0)) for ids in groups.values()), default=0) + 2
  table = np.zeros((size, len(groups)), np.float32)
  for column, ids in enumerate(groups.values()):
    table[ids, column] = 1
  return table


def flat_metrics(results: Results) -> dict[str, float]:
  """Returns results by path: `true/loss`, `none/by_depth/4-5/accuracy`."""
  flat: dict[str, float] = {}

  def visit(path: str, node: Any) -> None:
    if isinstance(node, Mapping):
      for name, child in node.items():
        visit(f"{path}/{name}" if path else name, child)
    else:
      flat[path] = node

  visit("", results)
  return flat


def metrics_of(results: Results) -> dict[str, float]:
  """Returns the overall metrics alone by path, for choosing checkpoints."""
  return {
    f"{condition}/{name}": value
    for condition, result in results.items()
    for name, value in {
      **{name: result[name] for name in _PER_SLICE},
      **f1.overall(result),
    }.items()
  }


def table(results: Results, title: str = "") -> Table:
  """Returns losses by condition: a column each, a row for each slice of the tokens."""
  first = next(iter(results.values()))
  rendered = Table(title=title or None, title_justify="left")
  rendered.add_column("held-out loss")
  for condition in results:
    rendered.add_column(condition, justify="right")
  rendered.add_column("tokens", justify="right")

  def add(name: str, key: str, slices: Sequence[Mapping[str, Any]]) -> None:
    values = (f"{slice_[key]:.3f}" for slice_ in slices)
    rendered.add_row(name, *values, f"{slices[0]['tokens']:,}")

  every = list(results.values())
  add("all", "loss", every)
  add("all: accuracy", "accuracy", every)
  for name, values, count in f1.rows(every):
    rendered.add_row(name, *(f"{value:.3f}" for value in values), f"{count:,}")
  for kind, prefix in (("by_group", ""), ("by_depth", "depth ")):
    rendered.add_section()
    for name in first[kind]:
      add(f"{prefix}{name}", "loss", [result[kind][name] for result in every])
  return rendered


def evaluate_checkpoint(
  model_dir: str,
  model: Model,
  eval_datasets: Mapping[str, EvalData],
  *,
  step: int | Literal["best"] | None = None,
  eval_batches: int | None = None,
  token_groups: TokenGroups | None = None,
  label_names: Sequence[str] = (),
  config: EvalConfig | None = None,
  partitioning_config: PartitioningConfig | None = None,
  best_metric: BestMetric = "true/loss",
  compile_cache_dir: str | None = None,
  watchdog: Watchdog | None = None,
) -> dict[str, Any]:
  """Evaluates a saved checkpoint.

  Args:
    model_dir: the run's folder.
    model: the model that was trained.
    eval_datasets: held-out data by name.
    step: which checkpoint; the newest if None.
    eval_batches: most batches; None for all.
    token_groups: ids of target tokens to report apart, by name.
    label_names: names of the labels that a head predicts, by number.
    config: what to measure.
    partitioning_config: devices; may differ from those of the run.
    best_metric: what 'best' means.
    compile_cache_dir: as `TrainConfig.compile_cache_dir`.
    watchdog: is told of progress; none if None.

  Returns:
    `step`, `path`, and `results` by dataset.

  Raises:
    UserError: if there is no such checkpoint or it is of another model.
  """
  runtime.set_flags(compile_cache_dir)
  partitioning_config = partitioning_config or PartitioningConfig()
  folder = storage.as_path(model_dir)
  chosen = checkpoints.choose(folder, step, best_metric)
  mesh = partitioning.make_mesh(partitioning_config)
  share = partitioning.data_share(mesh)
  example = next(next(iter(eval_datasets.values()))(share))
  rows = data_input.num_rows(example) * share.count
  data_input.check_batch_size(rows, mesh)
  like = state_lib.abstract_params(model, example, mesh, partitioning_config)
  path = checkpoints.path_of(folder, chosen)
  params = checkpoints.restore_params(path, like)
  evaluator = Evaluator(
    model,
    mesh,
    partitioning_config,
    config or EvalConfig(),
    token_groups,
    label_names,
  )
  watchdog = watchdog or Watchdog(HealthConfig())

  def go_on() -> bool:
    watchdog.at(chosen, "eval")
    return False

  results = {
    name: evaluator(params, dataset(share), eval_batches, go_on)
    for name, dataset in eval_datasets.items()
  }
  return {"step": chosen, "path": str(path), "results": results}
