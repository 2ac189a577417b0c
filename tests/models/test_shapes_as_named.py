"""The names of arrays say their shapes, wherever a batch is read.

Where replies are written token by token, L stands for 1 or for all tokens so far, as
the functions say there; `tests/models/decoding` compares their results.
"""

from __future__ import annotations

import ast

import jax
import numpy as np
import pytest

from commentree.models.transformer import kernel_choice
from commentree.tests.support import shape_suffixes
from commentree.tests.support.models import small_models

ONE_LAYER = {"num_encoder_layers": 1, "num_decoder_layers": 1}
# Family, and parts, as many at a time as go together.
VARIANTS = {
  "pooled": (
    "t5",
    {
      "pooling": "attention",
      "vectors_per_comment": 3,
      "num_thread_layers": 1,
      "ancestor_positions": "distance",
      "normalize_pooled_vectors": True,
      "ancestor_pointer": True,
      "vectors_to_logits": True,
      "reply_matching_weight": 0.5,
    },
  ),
  "nearest": (
    "roberta",
    {"nearest_context_tokens": 11, "ancestor_positions": "depth", "pooling": "max"},
  ),
  "concatenated": (
    "t5",
    {"context": "concatenated", "max_context_tokens": 11, "ancestor_pointer": True},
  ),
  "kernels": ("t5", {"attention": "pallas"}),
  "scanned": (
    "roberta",
    {"scan_layers": True, "remat_policy": "minimal", "dropout_rate": 0.1},
  ),
  "tagging": ("bert", {"head": "tagging", "num_labels": 3, "tagger": "crf"}),
}


def outputs(model, params, batch):
  """Computes all that a model of masked tokens, or of labels, is asked for."""
  found = {"loss": model.loss_sums(params, batch, jax.random.key(0))}
  found["vectors"] = model.vector_sums(params, batch)
  if model.config.head == "masked_lm":
    found["evaluation"] = model.evaluate_batch(params, batch, "true")
    found["scores"] = model.score_batch(params, batch)
  return found


@pytest.mark.parametrize(("family", "parts"), VARIANTS.values(), ids=VARIANTS)
def test_arrays_have_the_shapes_that_their_names_say(
  make, packed, monkeypatch, family, parts
):
  monkeypatch.setattr(kernel_choice, "INTERPRET", "attention" in parts)
  # Of layers that are not scanned the second is traced as the first.
  layers = {} if "scan_layers" in parts else ONE_LAYER
  model, params = make(**small_models.FAMILIES[family], **layers, **parts)
  batch = dict(packed.batch)
  if "head" in parts:
    batch["decoder_labels"] = np.zeros_like(batch["decoder_segment_ids"])
  with shape_suffixes.checked() as seen:
    jax.eval_shape(lambda *given: outputs(model, *given), params, batch)
  assert {"CommentTreeTransformer.encode", "CommentTreeTransformer._decode"} <= seen


def test_a_name_that_says_another_shape_is_told():
  arrays = {"x_BD": np.zeros((2, 3)), "null_1D": np.zeros((1, 3)), "other": 1}
  assert shape_suffixes.check(arrays, "here") == 2
  with pytest.raises(shape_suffixes.ShapeError, match="here: y_B is of shape"):
    shape_suffixes.check({**arrays, "y_B": np.zeros((2, 1))}, "here")
  with pytest.raises(shape_suffixes.ShapeError, match=r"D is 2 in y_D.*and 3 in x_BD"):
    shape_suffixes.check({**arrays, "y_D": np.zeros(2)}, "here")
  with pytest.raises(shape_suffixes.ShapeError, match="1 is 2 in y_1D"):
    shape_suffixes.check({**arrays, "y_1D": np.zeros((2, 3))}, "here")


def test_every_letter_of_an_axis_is_explained():
  """By `commentree.models`, or at the head of the module that has it alone."""
  for path in shape_suffixes.MODELS.rglob("*.py"):
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    suffixes = [shape_suffixes.SUFFIX.search(name) for name in names]
    used = set("".join(found[1] for found in suffixes if found)) - {"1"}
    explained = explained_by(shape_suffixes.MODELS / "__init__.py") | explained_by(path)
    assert used <= explained, (path.name, used - explained)


def explained_by(path):
  """Returns the letters that a module's docstring explains."""
  text = ast.get_docstring(ast.parse(path.read_text())) or ""
  words = text.replace("\n", " ").split(" ")
  return {word for word in words if len(word) == 1 and word.isupper()}
