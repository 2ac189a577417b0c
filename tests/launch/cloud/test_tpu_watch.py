"""What the watch over TPU slices makes of what the workers and the queue say."""

import subprocess
import sys

import pytest

from commentree.launch.cloud import tpu_types, tpu_watch
from commentree.launch.cloud.queued_resources import GONE, QueueState
from commentree.launch.cloud.tpu_watch import Next
from commentree.launch.cloud.worker_scripts import WorkerStatus

pytestmark = pytest.mark.hosts


def worker(state, code=None, host="w0"):
  return WorkerStatus(host, state, code, "a line")


@pytest.mark.parametrize(
  ("workers", "following", "code"),
  [
    ([], Next.WAIT, 0),
    ([worker("running"), worker("running")], Next.WAIT, 0),
    ([worker("ended", 0), worker("ended", 0)], Next.END, 0),
    ([worker("ended", 0), worker("running")], Next.WAIT, 0),
    ([worker("ended", 1), worker("running")], Next.WAIT, 0),
    ([worker("ended", 1), worker("ended", 75)], Next.END, 75),
    ([worker("ended", 2), worker("running")], Next.END, 2),
    ([worker("stopped", 143), worker("stopped", 143)], Next.END, 143),
    ([worker("stopped", 143), worker("running")], Next.WAIT, 0),
    ([worker("ended", 143), worker("running")], Next.START, 0),
    ([worker("lost"), worker("running")], Next.START, 0),
    ([worker("ended", 137), worker("running")], Next.START, 0),
    ([worker("ended", 130), worker("ended", 75)], Next.END, 130),
    ([worker("none"), worker("none")], Next.START, 0),
  ],
)
def test_what_follows_from_what_the_workers_say(workers, following, code):
  verdict = tpu_watch.judge_workers(workers)
  assert (verdict.next, verdict.exit_code) == (following, code)


@pytest.mark.parametrize(
  ("state", "following"),
  [
    (QueueState("ACTIVE"), None),
    (QueueState("PROVISIONING"), Next.WAIT),
    (QueueState("SUSPENDING"), Next.RECREATE),
    (QueueState("SUSPENDED"), Next.RECREATE),
    (QueueState("FAILED"), Next.RECREATE),
    (QueueState("SUSPENDED", by_user=True), Next.END),
    (QueueState("DELETING"), Next.END),
    (QueueState(""), Next.END),
  ],
)
def test_what_follows_from_the_state_of_the_queue(state, following):
  verdict = tpu_watch.judge_queue(state)
  assert (verdict and verdict.next) == following


@pytest.mark.parametrize(
  ("accelerator_type", "name", "chips"),
  [
    ("v2-8", "v2", 4),
    ("v4-64", "v4", 32),
    ("v5litepod-64", "v5e", 64),
    ("v5p-128", "v5p", 64),
    ("v6e-256", "v6e", 256),
  ],
)
def test_accelerator_types_tell_their_chips(accelerator_type, name, chips):
  generation, counted = tpu_types.of_accelerator_type(accelerator_type)
  assert (generation.name, counted) == (name, chips)


@pytest.mark.parametrize("state", ["REPAIRING", "RESTARTING", "DELETING", GONE, ""])
def test_vms_that_may_come_back_are_waited_for_and_then_given_up(state):
  absence = tpu_watch.Absence(patience_s=100)
  assert absence.judge({"mine": state}, 10) == ""
  assert absence.judge({"mine": state}, 110) == ""
  assert absence.judge({"mine": state}, 111) == (
    f"away for 101 s though the request is ACTIVE: mine ({state})"
  )


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", "STOPPED"])
def test_vms_that_were_taken_away_are_given_up_at_once(state):
  absence = tpu_watch.Absence(patience_s=100)
  absent = {"mine-0": "REPAIRING", "mine-1": state}
  assert absence.judge(absent, 0) == f"preempted: mine-0 (REPAIRING), mine-1 ({state})"


def test_vms_that_came_back_are_given_as_long_again():
  absence = tpu_watch.Absence(patience_s=100)
  assert absence.judge({"mine": GONE}, 0) == ""
  assert absence.judge({}, 90) == absence.named == ""
  assert absence.judge({"mine": GONE}, 110) == ""
  assert absence.judge({"mine": GONE}, 200) == ""


def test_the_table_of_chips_is_read_without_jax():
  code = (
    "import sys, commentree.launch.cloud.tpu_types\n"
    "assert not {'jax', 'numpy', 'tensorflow'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
