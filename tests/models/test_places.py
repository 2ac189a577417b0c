import jax
import jax.numpy as jnp
import numpy as np

from commentree.models.batch import positions_in_comment


def test_a_translation_goes_on_counting_the_tokens_of_its_comment():
  batch = {
    "encoder_segment_ids": jnp.array([[[1, 1, 1, 1, 2, 2, 0, 0], [3] * 8]]),
    "encoder_positions": jnp.array([[[0, 1, 0, 1, 0, 1, 0, 0], [0, 1, 2, 3] * 2]]),
  }
  assert positions_in_comment(batch, "encoder") is batch["encoder_positions"]
  batch["encoder_languages"] = jnp.zeros_like(batch["encoder_positions"])
  with jax.numpy_rank_promotion("raise"):  # as in a run
    found = np.where(
      batch["encoder_segment_ids"] > 0, positions_in_comment(batch, "encoder"), 0
    )
  assert found.tolist() == [[[0, 1, 2, 3, 0, 1, 0, 0], list(range(8))]]
