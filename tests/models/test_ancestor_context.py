from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.models.ancestor_context import AncestorContext, ByTarget

pytestmark = pytest.mark.usefixtures("strict_shapes")

# B examples of R rows of L tokens, of U target ids, that have S vectors; H heads.
EXAMPLES, ROWS, LENGTH, IDS, VECTORS, HEADS = 2, 8, 6, 5, 7, 3
TOKENS = ROWS * LENGTH


@pytest.fixture
def context() -> AncestorContext:
  rng = np.random.default_rng(4)
  targets = rng.integers(0, IDS, (EXAMPLES, TOKENS))
  visible = rng.integers(0, 2, (EXAMPLES, IDS, VECTORS)) > 0
  bias = rng.normal(size=(EXAMPLES, HEADS, IDS, VECTORS))
  by_target = ByTarget(
    jnp.asarray(visible),
    jnp.asarray(bias, jnp.float32),
    jnp.asarray(targets.reshape(-1, LENGTH), jnp.int32),
  )
  seen = np.stack([each[ids] for each, ids in zip(visible, targets)])
  distances = rng.integers(-1, 4, seen.shape)
  return AncestorContext(
    jnp.zeros((EXAMPLES, VECTORS, 4)),
    jnp.asarray(seen),
    bias_BHNS=by_target.bias_of_tokens(),
    distances_BNS=jnp.asarray(distances),
    by_target=by_target,
  )


@pytest.mark.parametrize("groups", [1, 4])
def test_tokens_at_positions_see_what_they_saw_among_all(context, groups):
  rng = np.random.default_rng(5)
  positions = rng.integers(0, TOKENS // groups, (EXAMPLES, groups, 2 * LENGTH))
  found = context.at(jnp.asarray(positions), LENGTH)

  first = np.arange(groups)[None, :, None] * (TOKENS // groups)
  tokens = (positions + first).reshape(EXAMPLES, -1)
  for example, picked in enumerate(tokens):
    for name in ("visible_BNS", "distances_BNS"):
      one, all_ = (
        np.asarray(getattr(each, name)[example]) for each in (found, context)
      )
      np.testing.assert_array_equal(one, all_[picked])
    np.testing.assert_array_equal(
      found.bias_BHNS[example], np.asarray(context.bias_BHNS)[example][:, picked]
    )
    np.testing.assert_array_equal(
      np.reshape(found.by_target.targets_RL, (EXAMPLES, -1))[example],
      np.reshape(context.by_target.targets_RL, (EXAMPLES, -1))[example][picked],
    )
  assert found.by_target.targets_RL.shape[1] == LENGTH


def test_no_head_picks_the_bias_of_tokens_among_all(context):
  """On TPUs that would be a product with all tokens for each head."""

  def of_tables(by_target: ByTarget, positions):
    whole = dataclasses.replace(
      context, by_target=by_target, bias_BHNS=by_target.bias_of_tokens()
    )
    return whole.at(positions, LENGTH).bias_BHNS

  positions = jnp.zeros((EXAMPLES, 1, LENGTH), jnp.int32)
  traced = jax.jit(of_tables).trace(context.by_target, positions)
  program = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert f"x{LENGTH}x{IDS}x" in program
  assert f"x{LENGTH}x{TOKENS}x" not in program
