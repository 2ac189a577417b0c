"""One host of a run that computes next to nothing, for tests of how hosts end.

  python run_host.py '{"address": …, "count": …, "index": …, "log_dir": …, …}'

Further keys: `wait_seconds`; `health` (HealthConfig's); `facts` (to agree on); `steps`
(at the end of each all hosts meet in a collective); `until` (a file that ends the
steps, instead of their number); `sleep_in` ([step, seconds], in
`input`); `wedge_in` (likewise, while no other thread can run Python); `raise_at`
([step, kind]); `linger` (seconds of work after the last step).
It prints each step as it is reached.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from commentree.errors import UserError
from commentree.launch.main import run_verb
from commentree.training.cluster import distributed
from commentree.training.cluster.host_settings import HostSettings
from commentree.training.config import HealthConfig


def main(argv) -> int:
  options = json.loads(argv[0])
  index = options["index"]
  settings = HostSettings(
    options["address"],
    options["count"],
    index,
    wait_seconds=options.get("wait_seconds", 30.0),
  )
  health = HealthConfig(**options.get("health", {}))
  with distributed.join_cluster(
    settings, health, options["log_dir"], "unused"
  ) as hosts:
    assert jax.process_index() == index
    hosts.watchdog.agree(options.get("facts", {}), "settings")
    steps = (
      itertools.count(1)
      if "until" in options
      else range(1, options.get("steps", 0) + 1)
    )
    for step in steps:
      hosts.watchdog.at(step, "input")
      print(f"step {step}", flush=True)
      when, seconds = options.get("sleep_in", (0, 0))
      if step == when:
        time.sleep(seconds)
      when, seconds = options.get("wedge_in", (0, 0))
      if step == when:
        ctypes.PyDLL(None).sleep(seconds)
      when, kind = options.get("raise_at", (0, ""))
      if step == when:
        raise {"UserError": UserError, "ValueError": ValueError}[kind]("it broke")
      hosts.watchdog.at(step, "step")
      enough = os.path.exists(options.get("until", ""))
      if np.any(multihost_utils.process_allgather(np.array([enough]))):
        break
      time.sleep(0.1)
    time.sleep(options.get("linger", 0))
    hosts.say("the end")
  return 0


if __name__ == "__main__":
  sys.exit(run_verb(main, sys.argv[1:]))
