"""A run with a head starts from one that predicted masked tokens."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from etils import epath

from commentree.models.batch import smallest
from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel
from commentree.training.partitioning import flatten_names
from commentree.training.warm_starts import assignments, rules
from commentree.training.warm_starts.formats.array_source import ArraySpec

FAMILIES = {
  "t5": ModelConfig(vocab_size=29),
  "stacked": ModelConfig(vocab_size=29, num_decoder_layers=1, scan_layers=True),
  "roberta": ModelConfig(
    vocab_size=29, family="roberta", mlp_activations=("gelu_exact",), num_positions=8
  ),
}
HEADS = {
  "crf": {"head": "tagging", "num_labels": 5, "tagger": "crf"},
  "classification": {"head": "classification", "num_labels": 3},
}


def specs_of(config):
  model = CommentTreeModel(config)
  shapes = {name: values.shape for name, values in smallest().items()}
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)
  )
  return {
    name: ArraySpec(leaf.shape, leaf.dtype)
    for name, leaf in flatten_names(variables["params"]).items()
  }


class Pretrained:
  """The arrays of a checkpoint of ours, which are not read."""

  path, kind = epath.Path("/runs/pretrained/checkpoint_1"), "Orbax checkpoint"

  def __init__(self, specs):
    self.arrays = {f"target.{name}": spec for name, spec in specs.items()}


@pytest.mark.parametrize(
  ("family", "head"),
  [("t5", "crf"), ("stacked", "crf"), ("roberta", "classification")],
)
def test_the_head_is_fresh_and_logits_are_unused(family, head):
  config = FAMILIES[family]
  source, assignment = assignments.rules_for(Pretrained(specs_of(config)))
  target = specs_of(dataclasses.replace(config, **HEADS[head]))
  plan = rules.plan(target, source, assignment)
  fresh = {line.parameter for line in plan.of("fresh")}
  assert fresh == {name for name in target if name.startswith("head.")}
  assert {line.parameter for line in plan.of("loaded")} == set(target) - fresh
  assert plan.unused
  assert all(".logits_" in name for name in plan.unused)
  report = "\n".join(plan.report())
  assert "head.logits.kernel" in report
  assert "unused: target.decoder.logits_" in report
