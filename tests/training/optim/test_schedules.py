from __future__ import annotations

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.training.optim import schedules
from commentree.training.optim.optimizer_config import ScheduleConfig


def rates(train_steps: int = 100, **settings) -> np.ndarray:
  config = ScheduleConfig(learning_rate=2.0, **settings)
  schedule = schedules.make_schedule(config, train_steps)
  return np.array([float(schedule(step)) for step in range(train_steps + 5)])


@pytest.mark.parametrize("name", ["constant", "rsqrt", "linear", "cosine", "wsd"])
def test_every_schedule_warms_up_linearly_to_the_peak_and_never_exceeds_it(name):
  values = rates(name=name, warmup_steps=10)
  np.testing.assert_allclose(values[:10], 2 * np.arange(1, 11) / 10, rtol=1e-6)
  assert values.max() == 2.0


def test_rsqrt_falls_as_the_inverse_square_root_of_the_step():
  values = rates(name="rsqrt", warmup_steps=25)
  np.testing.assert_allclose(values[99], 2 * (25 / 100) ** 0.5, rtol=1e-6)


def test_linear_and_cosine_end_at_their_final_share_and_stay_there():
  for name, middle in (("linear", 1.2), ("cosine", 1.2)):
    values = rates(name=name, warmup_steps=0, final_share=0.2)
    np.testing.assert_allclose(values[50], middle, rtol=1e-6)
    np.testing.assert_allclose(values[100:], 0.4, rtol=1e-6)
  assert (
    rates(name="cosine", warmup_steps=0)[25] > rates(name="linear", warmup_steps=0)[25]
  )


def test_wsd_is_constant_until_its_last_share_and_then_linear():
  values = rates(name="wsd", warmup_steps=10, decay_share=0.2)
  np.testing.assert_allclose(values[10:81], 2.0, rtol=1e-6)
  np.testing.assert_allclose(values[90], 1.0, rtol=1e-6)
  np.testing.assert_allclose(values[100], 0.0, atol=1e-6)


def test_the_decay_ends_where_set_whatever_the_length_of_the_run():
  assert rates(name="linear", warmup_steps=0, decay_steps=50)[50] == 0


def test_a_warmup_longer_than_the_run_is_refused():
  with pytest.raises(UserError, match="warmup_steps = 100"):
    rates(name="cosine", warmup_steps=100)
