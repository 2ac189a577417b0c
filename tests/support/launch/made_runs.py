"""Runs that are untrained: settings and drawn parameters, in a moment."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np

import gin
from commentree.launch.inference import run_context
from commentree.launch.settings import gin_cli, model_sizes
from commentree.models.batch import smallest
from commentree.models.model import CommentTreeModel
from commentree.tasks.sources import generated
from commentree.tasks.vocabulary import vocabulary_files
from commentree.training.checkpointing import run_record
from commentree.training.checkpointing.storage import as_path
from commentree.training.warm_starts import writing

SETTINGS = {
  "TRAIN_STEPS": 1,
  "TASK_FEATURE_LENGTHS": {"encoder": 24, "decoder": 24},
  "MAX_ANCESTORS": 4,
  "ForestLayout.decoder_rows": 8,
  "SubtreeConfig.max_tree_size": 8,
  "SubtreeConfig.max_comment_tokens": 24,
  "GeneratedTreesConfig.num_values": 4,
  "GeneratedTreesConfig.num_filler_words": 8,
  "GeneratedTreesConfig.max_filler_words": 8,
  "GeneratedTreesConfig.median_tree_size": 6.0,
  "GeneratedTreesConfig.max_tree_size": 24,
  "ModelConfig.emb_dim": 16,
  "ModelConfig.num_heads": 2,
  "ModelConfig.head_dim": 8,
  "ModelConfig.mlp_dim": 32,
  "ModelConfig.num_encoder_layers": 1,
  "ModelConfig.num_decoder_layers": 1,
}


def make(folder: pathlib.Path, objective: str = "mlm", **settings) -> pathlib.Path:
  """Makes a MODEL_DIR; returns it."""
  model_dir = folder / objective
  given = {
    **SETTINGS,
    "MODEL_DIR": str(model_dir),
    "CACHE_DIR": str(folder / "cache"),
    **settings,
  }
  overrides = [f"{name} = {value!r}" for name, value in given.items()]
  files = ["runs/demo.gin", f"objectives/{objective}.gin"]
  run = gin_cli.load(files, overrides)
  facts = run_context.of_run(run)
  config = model_sizes.with_sizes(
    run.model, run.data.preprocessing, facts.tokenizer.vocab_size
  )
  shapes = {name: values.shape for name, values in smallest().items()}
  model = CommentTreeModel(config)
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)
  )
  # By NumPy, because it takes no compiling.
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == "bias":
      return np.zeros(leaf.shape, np.float32)
    return np.float32(rng.normal(size=leaf.shape, scale=leaf.shape[0] ** -0.5))

  params = jax.tree_util.tree_map_with_path(draw, variables["params"])
  path = as_path(model_dir / "checkpoint_1")
  writing.write(writing.TreeArrays({"target": params}), path, "orbax", {})
  write_settings(model_dir, facts.tokenizer)
  return model_dir


def write_settings(model_dir: pathlib.Path, tokenizer) -> None:
  """Writes what a MODEL_DIR has of the settings that gin holds now."""
  files = vocabulary_files.to_store(tokenizer.path, tokenizer.content)
  config = gin.config_str(max_line_length=88).encode()
  run_record.write_files(as_path(model_dir), {**files, "config.gin": config})


def trees(model_dir: pathlib.Path, count: int) -> list[dict]:
  """Generated trees as lines of tree JSONL hold them."""
  config = gin_cli.load([str(model_dir / "config.gin")]).data.generated
  return [as_object(generated.generate_tree(config, 0, i)) for i in range(count)]


def as_object(tree) -> dict:
  """A tree as a line of tree JSONL holds it."""
  post, *comments = tree.comments
  ids = [comment.id for comment in tree.comments]
  return {
    "id": tree.id,
    "title": post.text,
    "author": post.author,
    "comments": [
      {
        "id": comment.id,
        "parent_id": ids[comment.parent],
        "author": comment.author,
        "body": comment.text,
        "created_utc": comment.created_utc,
      }
      for comment in comments
    ],
  }


def map_texts(change, tree: dict) -> dict:
  """The tree with other texts."""
  comments = [{**c, "body": change(c["body"])} for c in tree["comments"]]
  return {**tree, "title": change(tree["title"]), "comments": comments}


def write(path: pathlib.Path, found: list[dict]) -> str:
  """Writes a file of tree JSONL; returns its name."""
  path.write_text("".join(json.dumps(tree) + "\n" for tree in found))
  return str(path)


def read_line(line: str) -> dict:
  """What a line of output says."""
  return json.loads(line)
