"""`make bench`: comments per second of a train step, against the usual layouts.

Three ways to train on the same comments of the same trees, at the same width and
depth, timed in turn in one process:

  forest   ours: answered comments encoded once, several comments to a row
  padded   one comment to a row of 128, every comment encoded
  thread   a BERT-style encoder over the concatenated thread, up to 512 tokens,
           once for each comment
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.table import Table

from commentree.console import Console
from commentree.models.config import ModelConfig
from commentree.models.heads.losses import token_losses
from commentree.models.layers import Dense
from commentree.models.model import CommentTreeModel
from commentree.models.transformer.stacks import EncoderStack
from commentree.models.transformer.t5 import T5, T5Embedder
from commentree.tasks import data as data_lib
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests import forest_layout, forest_streams, pack_items
from commentree.tasks.forests.forest_layout import ForestLayout, ForestShape
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.forests.packing import ForestBuilder
from commentree.tasks.forests.rows import OpenRows, Placed
from commentree.tasks.seqio_tasks import registry

COMMENT_LENGTH = 128
THREAD_LENGTH = 512
_MASKED_PER_THREAD = 24

Batch = dict[str, Any]
Step = Callable[[Any, Batch], tuple[Any, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Contender:
  """A way of training, ready to run.

  Attributes:
    name: what the table calls it.
    batches: batches made beforehand, each with its number of target comments.
    loss: (params, batch) to (loss sum, number of masked tokens).
    init: key to parameters.
  """

  name: str
  batches: list[tuple[Batch, int]]
  loss: Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
  init: Callable[[jax.Array], Any]


class _OnePerRow(OpenRows):
  """Rows of which every comment takes a whole one."""

  def find(self, lengths: list[int], masked: list[int]) -> Placed | None:
    """Finds places for items, or None."""
    return super().find([self._length] * len(lengths), masked)


class PaddedBuilder(ForestBuilder):
  """A forest with one comment to a row, all of its comments encoded."""

  def __init__(self, shape: ForestShape):
    super().__init__(shape)
    self._decoder = _OnePerRow(
      shape.decoder_rows,
      shape.decoder_length,
      shape.masked_per_group,
      shape.masked_groups,
    )
    self._encoder = _OnePerRow(shape.encoder_rows, shape.encoder_length)

  @staticmethod
  def encode_all(item: PackItem) -> PackItem:
    """The subtree with every comment that has tokens in its encoder set."""
    lengths = item.subtree["lengths"]
    encoded = np.flatnonzero(lengths)
    return dataclasses.replace(
      item,
      encoded=encoded,
      encoded_lengths=np.minimum(lengths[encoded], COMMENT_LENGTH),
    )


def forest_contender(config: ModelConfig, data: data_lib.RunData, count: int):
  """Our batches and our model."""
  model = CommentTreeModel(config)
  batches = [
    (batch, int(batch["decoder_segment_ids"].max()))
    for batch in itertools.islice(data.train_batches(1, seed=0), count)
  ]
  return _of_model("forest", model, batches)


def padded_contender(config: ModelConfig, items: list[PackItem], count: int):
  """The same model over one comment a row."""
  rows = 64
  shape = ForestShape(
    COMMENT_LENGTH,
    COMMENT_LENGTH,
    encoder_rows=rows,
    decoder_rows=rows,
    encoder_slots=rows,
    target_slots=rows,
    max_ancestors=items[0].ancestors.shape[1],
    masked_groups=rows,
    masked_per_group=_MASKED_PER_THREAD,
  )
  batches = []
  builder, targets = PaddedBuilder(shape), 0
  for item in itertools.cycle(map(PaddedBuilder.encode_all, items)):
    if len(item.subtree["lengths"]) > rows:
      continue
    if builder.add(item):
      targets += len(item.targets)
      continue
    batches.append((forest_streams.stack([builder.build()]), targets))
    if len(batches) == count:
      break
    builder, targets = PaddedBuilder(shape), 0
  return _of_model("padded", CommentTreeModel(config), batches)


def _of_model(name: str, model: CommentTreeModel, batches: list[tuple[Batch, int]]):
  shapes = {key: value.shape for key, value in batches[0][0].items()}
  return Contender(
    name,
    batches,
    loss=lambda params, batch: model.loss_sums(params, batch, None)[:2],
    init=lambda key: model.get_initial_variables(key, shapes)["params"],
  )


class ThreadModel(nn.Module):
  """A BERT-style masked language model: our encoder stack, one thread a row."""

  config: ModelConfig

  @nn.compact
  def __call__(self, batch):
    """Returns logits `[R, M, V]`."""
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    x_RLD = T5Embedder(cfg, name="token_embedder")(
      batch["tokens"], jnp.arange(batch["tokens"].shape[-1]), None
    )
    x_RLD = EncoderStack(cfg, T5, deterministic=True, name="encoder")(
      x_RLD, (batch["tokens"] > 0).astype(jnp.int32)
    )
    x_RMD = jnp.take_along_axis(x_RLD, batch["positions"][..., None], axis=1)
    return Dense(
      cfg.vocab_size, ("embed", "vocab"), dtype, output_dtype=jnp.float32, name="logits"
    )(x_RMD)


def thread_contender(config: ModelConfig, items: list[PackItem], count: int):
  """A row of up to 512 tokens for each comment: its ancestors, then itself, masked."""
  rows = 16
  model = ThreadModel(config)
  batches = []
  examples = itertools.cycle(_threads(items))
  for _ in range(count):
    chosen = [next(examples) for _ in range(rows)]
    batch = {name: np.stack([c[name] for c in chosen]) for name in chosen[0]}
    batches.append((batch, rows))

  def loss(params, batch):
    losses = token_losses(
      cast(jax.Array, model.apply({"params": params}, batch)),
      batch["targets"],
      label_smoothing=0.0,
      z_loss=config.z_loss,
    )
    return jnp.sum(losses.loss * batch["weights"]), jnp.sum(batch["weights"])

  return Contender(
    "thread",
    batches,
    loss,
    init=lambda key: model.init(key, batches[0][0])["params"],
  )


def _threads(items: Sequence[PackItem]) -> list[Batch]:
  examples = []
  for item in items:
    subtree = item.subtree
    ends = np.cumsum(subtree["lengths"])
    starts = ends - subtree["lengths"]
    for target, ancestors in zip(item.targets, item.ancestors):
      span = slice(starts[target], ends[target])
      context = [
        subtree["tokens"][starts[a] : ends[a]] for a in ancestors[::-1] if a >= 0
      ]
      own = subtree["input_tokens"][span][:COMMENT_LENGTH]
      above = np.concatenate([np.empty(0, np.int32), *context])
      above = above[max(0, len(above) - (THREAD_LENGTH - len(own))) :]
      masked = np.flatnonzero(subtree["is_masked"][span][: len(own)])[
        :_MASKED_PER_THREAD
      ]

      def padded(values, size, dtype=np.int32):
        return np.pad(np.asarray(values, dtype), (0, size - len(values)))

      examples.append(
        {
          "tokens": padded(np.concatenate([above, own]), THREAD_LENGTH),
          "positions": padded(masked + len(above), _MASKED_PER_THREAD),
          "targets": padded(subtree["tokens"][span][masked], _MASKED_PER_THREAD),
          "weights": padded(np.ones(len(masked)), _MASKED_PER_THREAD, np.float32),
        }
      )
  return examples


def train_step(contender: Contender, optimizer: optax.GradientTransformation) -> Step:
  """Returns a compiled (state, batch) to (state, loss)."""

  def mean_loss(params, batch):
    total, weight = contender.loss(params, batch)
    return total / jnp.maximum(weight, 1)

  @jax.jit
  def step(state, batch):
    params, opt_state = state
    loss, grads = jax.value_and_grad(mean_loss)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  return step


def measure(
  contenders: Sequence[Contender], seconds: float
) -> Iterator[tuple[str, float, float]]:
  """Times the contenders' steps in turn.

  Yields:
    Name, comments per second and milliseconds a step, medians over the rounds.
  """
  optimizer = optax.adam(1e-3)
  running = []
  for contender in contenders:
    params = contender.init(jax.random.key(0))
    state = (params, optimizer.init(params))
    step = train_step(contender, optimizer)
    state, loss = step(state, contender.batches[0][0])
    loss.block_until_ready()
    running.append([contender, step, state, []])
  for contender, step, state, _ in running:
    jax.block_until_ready(step(state, contender.batches[0][0]))
  deadline = time.monotonic() + seconds
  for turn in itertools.count():
    if time.monotonic() > deadline and turn >= 5:
      break
    for entry in running:
      contender, step, state, rates = entry
      # A step of a small batch is repeated, so that each turn takes like long.
      spent, comments, steps = 0.0, 0, 0
      while spent < 0.5:
        batch, targets = contender.batches[(turn + steps) % len(contender.batches)]
        started = time.perf_counter()
        state, loss = step(state, batch)
        loss.block_until_ready()
        spent += time.perf_counter() - started
        comments += targets
        steps += 1
      entry[2] = state
      rates.append((comments / spent, 1000 * spent / steps))
  for contender, _, _, rates in running:
    yield (
      contender.name,
      statistics.median(r for r, _ in rates),
      statistics.median(ms for _, ms in rates),
    )


def open_data(
  files: str | None, vocabulary: str | None, cache_dir: str
) -> data_lib.RunData:
  """The data to run on; generated trees if there are no files."""
  return data_lib.open_data(
    DataConfig(
      mixture_or_task_name=registry.FILES if files else registry.GENERATED,
      task_feature_lengths={"encoder": COMMENT_LENGTH, "decoder": COMMENT_LENGTH},
      files=files,
      vocabulary=vocabulary,
      held_out_share=0.0,
      cache_dir=cache_dir,
      layout=ForestLayout(decoder_rows=64),
    ),
    Console(stderr=True),
    splits=("train",),
  )


def make_contenders(
  data: data_lib.RunData,
  dtype: Literal["float32", "bfloat16"],
  counts: tuple[int, int, int] = (8, 8, 32),
) -> list[Contender]:
  """Returns what is compared: forests, a comment a row, a thread a row.

  Args:
    data: the trees.
    dtype: compute dtype.
    counts: batches of each.
  """
  objective = data.task.objective()
  items = [
    pack_items.measure(
      objective(data.splits["train"][i], COMMENT_LENGTH, 0, 0, i),
      COMMENT_LENGTH,
      COMMENT_LENGTH,
      data.shape.max_ancestors,
    )
    for i in range(min(len(data.splits["train"]), 2000))
  ]
  items = [item for item in items if len(item.targets)]
  config = ModelConfig(
    vocab_size=forest_layout.round_up(data.task.tokenizer.vocab_size, 128),
    dtype=dtype,
  )
  forests, padded, threads = counts
  return [
    forest_contender(config, data, forests),
    padded_contender(config, items, padded),
    thread_contender(config, items, threads),
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    prog="python -m commentree.launch.benchmarks.bench",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--files", help="tree files; generated trees without")
  parser.add_argument(
    "--vocabulary", help="SentencePiece model or tokenizer.json for --files"
  )
  parser.add_argument("--seconds", type=float, default=60.0, help="time to spend")
  parser.add_argument(
    "--dtype",
    default="float32",
    choices=("float32", "bfloat16"),
    help="compute dtype",
  )
  parser.add_argument("--json", action="store_true", help="print JSON, not a table")
  arguments = parser.parse_args(argv)

  with tempfile.TemporaryDirectory() as cache_dir:
    data = open_data(arguments.files, arguments.vocabulary, cache_dir)
    contenders = make_contenders(data, arguments.dtype)
    results = list(measure(contenders, arguments.seconds))
  ours = results[0][1]
  rows = [
    {"layout": name, "comments_per_second": rate, "step_ms": ms, "ours_is": ours / rate}
    for name, rate, ms in results
  ]
  if arguments.json:
    print(json.dumps(rows))
    return 0
  table = Table(
    title=f"train step, {jax.devices()[0].platform}, {ModelConfig().emb_dim} wide"
  )
  for heading in ("layout", "comments/s", "ms/step", "forest is"):
    table.add_column(heading, justify="left" if heading == "layout" else "right")
  for row in rows:
    table.add_row(
      str(row["layout"]),
      f"{row['comments_per_second']:,.0f}",
      f"{row['step_ms']:,.0f}",
      f"{row['ours_is']:.1f}x",
    )
  Console().print(table)
  return 0


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
