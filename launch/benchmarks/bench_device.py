"""`make device`: what the devices here make of a model; needs no data, no TensorFlow.

Times the train step of a run with these settings, and what `infer` computes of a
forest: `embed` encodes its comments, `fill` predicts its masked tokens, `score` their
losses with ancestors and without. Forests are synthetic: comments as long as real ones
(log-normal; see --comment_tokens), in threads.

Utilisation is what the products of the model's matrices and of attention take, once
forwards and twice backwards, by the time of the step and by the FLOP/s that a product
of square matrices reaches on the same device. Memory is what the compiler sets aside
for the program, arguments included, and the most that the device says it ever held.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from commentree.console import Console
from commentree.launch.settings import flags, gin_cli, typical_forests
from commentree.launch.settings.configurables import RunConfig
from commentree.settings import check_range
from commentree.tasks.forests import pack_items
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.forests.packing import Forest, ForestBuilder
from commentree.tasks.objectives.masking import masked_counts
from commentree.tasks.subtrees.subtree_builder import Subtree, ranges

_DEFAULTS = "runs/compile.gin"
_NOT_NEEDED = (
  "MODEL_DIR = 'nowhere'",
  "MIXTURE_OR_TASK_NAME = 'none'",
  "TRAIN_STEPS = 100000",
)
# Words of forum comments: half have up to 56, one in ten 255 and more.
_LENGTH_SIGMA = 1.18
_TREE_SIZE = 12
# Of a tree's comments, how many answer the one before them.
_CHAIN_SHARE = 0.6
_MASKED_SHARE = 0.15
_PRODUCTS = 8
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Timed:
  """A program that ran.

  Attributes:
    program: its name.
    ms: of one call, the median.
    comments_per_second: targets, or comments that are encoded, by the time.
    tokens_per_second: of these, without padding.
    teraflops: that the model needs a second.
    utilisation: of what products reach on this device.
    gib: that the compiler sets aside, arguments included.
  """

  program: str
  ms: float
  comments_per_second: float
  tokens_per_second: float
  teraflops: float
  utilisation: float
  gib: float


def draw_tree(
  rng: np.random.Generator, mean_tokens: float, row: int, vocab_size: int
) -> Subtree:
  """Draws a subtree with masked tokens; lengths are clipped to a row."""
  size = int(rng.integers(1, 2 * _TREE_SIZE))
  median = mean_tokens / _clipped_mean(row / mean_tokens)
  drawn = rng.lognormal(np.log(median), _LENGTH_SIGMA, size)
  lengths = np.clip(drawn, 1, row).astype(np.int32)
  follows = rng.random(size) < _CHAIN_SHARE
  parents = np.array(
    [i - 1 if follows[i] else int(rng.integers(-1, i)) for i in range(size)], np.int32
  )
  parents[1:] = np.maximum(parents[1:], 0)
  parents[0] = -1
  depths = np.zeros(size, np.int32)
  for i in range(1, size):
    depths[i] = depths[parents[i]] + 1
  tokens = rng.integers(1, vocab_size, int(lengths.sum()), dtype=np.int32)
  # Of each comment the first few by a random order.
  comment = np.repeat(np.arange(size), lengths)
  order = np.lexsort((rng.random(len(tokens)), comment))
  is_masked = np.zeros(len(tokens), np.bool_)
  is_masked[order] = ranges(np.zeros_like(lengths), lengths) < np.repeat(
    masked_counts(lengths, _MASKED_SHARE), lengths
  )
  return {
    "tokens": tokens,
    "input_tokens": np.where(is_masked, 0, tokens).astype(np.int32),
    "is_masked": is_masked.astype(np.int32),
    "lengths": lengths,
    "parents": parents,
    "depths": depths,
    "is_target": np.ones(size, np.int32),
    "node_ids": np.arange(size, dtype=np.int32),
  }


@functools.cache
def _clipped_mean(limit_by_mean: float) -> float:
  """The mean of lengths clipped to a row, by their median, for such a mean."""
  drawn = np.random.default_rng(0).lognormal(0, _LENGTH_SIGMA, 100_000)
  # The row is so many means long; a few rounds find where that is in medians.
  mean = float(drawn.mean())
  for _ in range(20):
    mean = float(np.minimum(drawn, limit_by_mean * mean).mean())
  return mean


def draw_forest(
  rng: np.random.Generator, shape: ForestShape, mean_tokens: float, vocab_size: int
) -> Forest:
  """Fills a forest with trees that are drawn until a number of them find no place."""
  builder, misfits = ForestBuilder(shape), 0
  while misfits < 20:
    tree = draw_tree(rng, mean_tokens, shape.decoder_length, vocab_size)
    item = pack_items.measure(
      tree, shape.encoder_length, shape.decoder_length, shape.max_ancestors
    )
    misfits += not builder.add(item)
  return builder.build()


def matmul_flops(size: int, rounds: int) -> float:
  """Returns the FLOP/s of products of square bfloat16 matrices, the best of rounds."""
  import jax
  import jax.numpy as jnp

  @jax.jit
  def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
    for _ in range(_PRODUCTS):
      x = (x @ y) * (1 / size)
    return x

  x = jnp.ones((size, size), jnp.bfloat16)
  seconds = min(_times(lambda: multiply(x, x), rounds))
  return _PRODUCTS * 2 * size**3 / seconds


def _times(call: Callable[[], Any], rounds: int) -> list[float]:
  """Returns the seconds of each of several calls, after one that compiles."""
  import jax

  jax.block_until_ready(call())
  found = []
  for _ in range(rounds):
    started = time.perf_counter()
    jax.block_until_ready(call())
    found.append(time.perf_counter() - started)
  return found


def measure(
  run: RunConfig, vocab_size: int, comment_tokens: float, rounds: int, peak: float
) -> list[Timed]:
  """Times the train step and inference on all devices here.

  Args:
    run: the settings; a batch of 1 becomes a forest for each device.
    vocab_size: of the model, if its settings leave it open.
    comment_tokens: mean tokens of a comment.
    rounds: calls of each program that are timed.
    peak: FLOP/s of a device.
  """
  import jax

  from commentree.models import attribution
  from commentree.models.model import CommentTreeModel
  from commentree.training import partitioning
  from commentree.training import state as state_lib
  from commentree.training.optim import schedules
  from commentree.training.optim.optimizers import make_optimizer
  from commentree.training.step import make_train_step
  from commentree.training.tpu_compile import ahead_of_time, flops

  ahead_of_time.set_flags()
  shape, _ = typical_forests.typical_shape(run.data, comment_tokens)
  train, config = run.train, run.model
  mesh = partitioning.make_mesh(train.partitioning, jax.devices())
  if train.batch_size == 1:
    train = dataclasses.replace(train, batch_size=mesh.size)
  if not config.vocab_size:
    config = dataclasses.replace(config, vocab_size=vocab_size)
  model = CommentTreeModel(config)
  rng = np.random.default_rng(0)
  forests = [
    draw_forest(rng, shape, comment_tokens, config.vocab_size)
    for _ in range(train.batch_size)
  ]
  stacked = {name: np.stack([f[name] for f in forests]) for name in forests[0]}
  batch = jax.device_put(stacked, partitioning.batch_sharding(mesh))
  schedule = schedules.make_schedule(train.optimizer.schedule, train.last_step)
  optimizer = make_optimizer(train.optimizer, schedule)

  def score(params: Any, batch: Any) -> jax.Array:
    encoded = attribution.encode_once(model, params, batch)
    return attribution.losses_by_condition(
      model, params, encoded, batch, ("true", "none")
    )

  def embed(params: Any, batch: Any) -> jax.Array:
    return model.encode(params, batch).vectors_BEJD

  with partitioning.in_mesh(mesh, train.partitioning):
    params = state_lib.abstract_params(model, batch, mesh, train.partitioning)
    like = state_lib.abstract_state(params, optimizer, mesh, train.partitioning)
    first_key, step_key = state_lib.first_keys(0, mesh)
    state = state_lib.initial_state(model, optimizer, batch, like, first_key)
    step = make_train_step(model, optimizer, schedule, train, mesh, like)
    programs = {
      "train": step.lower(state, batch, step_key).compile(),
      **{
        name: jax.jit(compute).lower(state.params, batch).compile()
        for name, compute in (
          ("embed", embed),
          ("fill", model.predict_batch_with_aux),
          ("score", score),
        )
        if config.context == "pooled" or name != "embed"
      },
    }
    needed = _needed(flops.train_step_flops(config, params, batch), stacked, config)

    def call(name: str) -> Any:
      nonlocal state
      if name != "train":
        return programs[name](state.params, batch)
      # The state that went in is given away.
      state, sums = programs[name](state, batch, step_key)
      return sums

    found = []
    for name, program in programs.items():
      seconds = statistics.median(_times(functools.partial(call, name), rounds))
      side = "encoder" if name == "embed" else "decoder"
      rate = needed[name] / seconds
      found.append(
        Timed(
          name,
          1000 * seconds,
          _comments(stacked, side) / seconds,
          int((stacked[f"{side}_segment_ids"] > 0).sum()) / seconds,
          rate / 1e12,
          rate / (peak * mesh.size),
          _bytes(program) / GIB,
        )
      )
  return found


def _needed(train: float, batch: Mapping[str, Any], config: Any) -> dict[str, float]:
  """Returns the FLOPs of each program: forwards a third of a train step's.

  Encoder and decoder share that by their tokens and layers.
  """
  forwards = train / 3
  encoder = batch["encoder_segment_ids"].size * config.num_encoder_layers
  decoder = batch["decoder_segment_ids"].size * config.num_decoder_layers
  of_encoder = forwards * encoder / (encoder + decoder)
  return {
    "train": train,
    "embed": of_encoder,
    "fill": forwards,
    "score": 2 * forwards - of_encoder,
  }


def _comments(batch: Mapping[str, Any], side: str) -> int:
  return int(batch[f"{side}_segment_ids"].max(axis=(1, 2)).sum())


def _bytes(program: Any) -> int:
  """What a compiled program takes of a device; what it reuses counts once."""
  stats = program.memory_analysis()
  return (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
    + stats.temp_size_in_bytes
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m commentree.launch.benchmarks.bench_device",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  gin_cli.add_gin_flags(parser, required=False)
  parser.add_argument(
    "--vocab_size",
    type=int,
    default=32128,
    help="pieces in the vocabulary, unless ModelConfig.vocab_size says (32128)",
  )
  parser.add_argument(
    "--comment_tokens",
    type=float,
    default=typical_forests.COMMENT_TOKENS,
    help="mean tokens of a comment, at most a row's (%(default)s)",
  )
  flags.add_number(parser, "--rounds", 10, "calls of each program that are timed")
  parser.add_argument(
    "--matmul",
    type=int,
    metavar="N",
    help="rows of the square matrices (8192; on a CPU 1024)",
  )
  parser.add_argument("--json", action="store_true", help="print JSON, not a table")
  return parser


def main(argv: Sequence[str]) -> int:
  """Prints the table; returns the exit code."""
  others, overrides = gin_cli.split_overrides(argv)
  arguments = _parser().parse_args(others)
  check_range("bench_device", "--rounds", arguments.rounds, 1)
  run = gin_cli.load(
    [_DEFAULTS, *arguments.gin_file],
    [*gin_cli.still_needed(_NOT_NEEDED, overrides), *overrides],
    arguments.gin_search_paths,
  )
  import jax

  device = jax.devices()[0]
  size = arguments.matmul or (1024 if device.platform == "cpu" else 8192)
  peak = matmul_flops(size, arguments.rounds)
  found = measure(
    run, arguments.vocab_size, arguments.comment_tokens, arguments.rounds, peak
  )
  stats = device.memory_stats() or {}
  facts = {
    "device": device.device_kind,
    "devices": jax.device_count(),
    "dtype": run.model.dtype,
    "matmul_teraflops": peak / 1e12,
    "most_gib_held": stats.get("peak_bytes_in_use", 0) / GIB or None,
  }
  if arguments.json:
    print(json.dumps({**facts, "programs": [dataclasses.asdict(t) for t in found]}))
    return 0
  Console().print(_table(facts, found))
  return 0


def _table(facts: Mapping[str, Any], found: Sequence[Timed]) -> Table:
  held = facts["most_gib_held"]
  caption = f"products of matrices: {facts['matmul_teraflops']:.3g} TFLOP/s a device"
  table = Table(
    title=f"{facts['devices']} x {facts['device']}, {facts['dtype']}",
    caption=caption + (f"; most held: {held:.1f} GiB" if held else ""),
  )
  table.add_column("program")
  for heading in ("ms", "comments/s", "tokens/s", "TFLOP/s", "utilisation", "GiB"):
    table.add_column(heading, justify="right")
  for timed in found:
    table.add_row(
      timed.program,
      f"{timed.ms:,.1f}",
      f"{timed.comments_per_second:,.0f}",
      f"{timed.tokens_per_second:,.0f}",
      f"{timed.teraflops:.3g}",
      f"{timed.utilisation:.1%}",
      f"{timed.gib:.2f}",
    )
  return table


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
