"""Models learn the same with kernels as without, on any mesh."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from commentree.models.conditions import apply_condition
from commentree.models.transformer import kernel_choice
from commentree.tests.support.models import forests

_ON_MESHES = pathlib.Path(__file__).parents[2] / "support/models/kernels_on_meshes.py"
_SECONDS = 300


def loss_of(model, batch):
  def loss(params):
    return model.loss_sums(params, batch, jax.random.key(3))[0]

  return loss


def test_a_model_has_the_same_loss_and_gradients_with_kernels(
  make, packed, monkeypatch
):
  """With dropout, and in order behind a prefix."""
  batch = dict(packed.batch)
  batch["target_prefix_lengths"] = np.minimum(batch["target_depths"], 2)

  def found(attention):
    model, params = make(
      attention=attention,
      dropout_rate=0.3,
      causal_position_buckets=True,
      scan_layers=True,
      remat_policy="minimal",
    )
    return jax.jit(
      jax.value_and_grad(loss_of(model, batch)),
      compiler_options=forests.QUICK_COMPILE,
    )(params)

  loss, gradients = found("xla")
  monkeypatch.setattr(kernel_choice, "INTERPRET", True)
  same_loss, same_gradients = found("pallas")
  np.testing.assert_allclose(same_loss, loss, rtol=1e-5)
  for one, other in zip(jax.tree.leaves(same_gradients), jax.tree.leaves(gradients)):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize(
  ("policy", "calls"), [("none", 2), ("minimal", 2), ("attention", 2), ("full", 3)]
)
def test_the_backward_pass_runs_a_kernel_again_if_its_output_was_not_saved(
  make, packed, monkeypatch, policy, calls
):
  monkeypatch.setattr(kernel_choice, "INTERPRET", True)
  model, params = make(scan_layers=True, remat_policy=policy, attention="pallas")
  traced = jax.make_jaxpr(jax.grad(loss_of(model, packed.batch)))(params)
  # Of the encoder's attention and the decoder's two: forwards, again, and the gradient.
  assert str(traced).count("= pallas_call[") == 3 * calls


def test_rematerialization_by_name_saves_the_outputs_of_kernels_alone(
  make, packed, monkeypatch
):
  monkeypatch.setattr(kernel_choice, "INTERPRET", True)

  def saved(policy):
    model, params = make(remat_policy=policy, attention="pallas")
    _, backward = jax.eval_shape(
      lambda p: jax.vjp(lambda p: model.loss_sums(p, packed.batch, None)[0], p), params
    )
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  config = make()[0].config
  encoder, decoder = (
    packed.batch[f"{side}_input_tokens"].size for side in ("encoder", "decoder")
  )
  tokens = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder * 2
  outputs = tokens * config.num_heads * config.head_dim
  assert saved("attention") - saved("full") == outputs


@pytest.mark.long
def test_conditions_that_show_the_same_ancestors_have_the_same_losses_to_the_bit(
  make, packed, monkeypatch
):
  """What is told of attention under the true ones does not change how it is rounded."""
  monkeypatch.setattr(kernel_choice, "INTERPRET", True)
  settings = {"num_encoder_layers": 1, "num_decoder_layers": 1}
  model, params = make(
    attention="pallas", dtype="bfloat16", vectors_per_comment=2, **settings
  )
  batch = apply_condition(packed.batch, "parent_only")
  true, parents = jax.jit(
    lambda batch: [
      model.evaluate_batch(params, batch, condition)["nll"]
      for condition in ("true", "parent_only")
    ],
    compiler_options=forests.QUICK_COMPILE,
  )(batch)
  np.testing.assert_array_equal(true, parents)


def test_devices_that_share_rows_and_heads_compute_what_one_does():
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8",
  }
  run = subprocess.run(
    [sys.executable, str(_ON_MESHES)],
    env=environment,
    capture_output=True,
    text=True,
    timeout=_SECONDS,
    check=False,
  )
  assert run.returncode == 0, run.stderr
  assert run.stdout.splitlines()[-1] == "3 meshes agree; 3 heads over 2 are refused"
