import pytest

from commentree.launch.supervision import restart_policy
from commentree.launch.supervision.restart_policy import (
  Action,
  Exit,
  RestartBudget,
  decide,
)


def exits(*codes):
  return [Exit(host, code) for host, code in enumerate(codes)]


@pytest.mark.parametrize("code", [1, 74, 75, 143, -9, -6, -11, -15, 137, 3])
def test_crashes_kills_lost_hosts_and_preemptions_are_started_again(code):
  decision = decide(exits(code))
  assert decision.action is Action.RESTART
  assert decision.cause.code == code


@pytest.mark.parametrize("code", [0, 2, 130, 126, 127, -2])
def test_success_users_mistakes_and_interrupts_are_not_started_again(code):
  decision = decide(exits(code))
  assert decision.action is Action.STOP
  assert decision.exit_code == restart_policy.normal(code)


@pytest.mark.parametrize(
  ("code", "own"), [(-9, 1), (137, 1), (143, 143), (75, 75), (74, 74), (1, 1)]
)
def test_a_supervisor_that_gives_up_does_not_look_killed_itself(code, own):
  assert decide(exits(code)).exit_code == own


def test_all_hosts_done_is_success_and_names_nobody():
  assert decide(exits(0, 0, 0)).cause is None


def test_a_host_killed_after_the_others_were_done_is_started_again():
  assert decide(exits(0, -9)).action is Action.RESTART


@pytest.mark.parametrize("codes", [(75, 2, 75), (1, 2), (-9, 75, 2)])
def test_a_users_mistake_on_any_host_stops_all(codes):
  decision = decide(exits(*codes))
  assert (decision.action, decision.exit_code) == (Action.STOP, 2)
  assert decision.cause.code == 2


def test_the_first_to_end_badly_is_the_cause():
  assert decide(exits(0, 1, -9)).cause.host == 1


def test_a_host_that_reports_a_lost_one_is_not_the_cause():
  assert decide(exits(75, 75, -9, 75)).cause.host == 2


def test_a_host_that_the_supervisor_ended_is_not_the_cause():
  ended = [Exit(1, -9, ended_by_us=True), Exit(0, 75)]
  assert decide(ended).cause == Exit(0, 75)


def test_a_users_signal_stops_and_passes_the_code_on():
  decision = decide(exits(143, 143), stop_signal=15)
  assert (decision.action, decision.exit_code, decision.cause.code if decision.cause
          else None) == (Action.STOP, 143, None)  # fmt: skip
  assert decide(exits(130, 0), stop_signal=2).exit_code == 130
  assert decide(exits(0, 0), stop_signal=15).exit_code == 0


def test_a_crash_after_a_users_signal_is_told_and_not_started_again():
  decision = decide(exits(143, 1), stop_signal=15)
  assert (decision.action, decision.exit_code) == (Action.STOP, 1)
  assert decision.cause.host == 1


@pytest.mark.parametrize(
  ("code", "said"),
  [
    (-9, "was killed by SIGKILL"),
    (137, "was killed by SIGKILL"),
    (-15, "was killed by SIGTERM"),
    (143, "was preempted"),
    (75, "lost another host"),
    (127, "could not be started"),
    (3, "ended with exit code 3"),
    (255, "ended with exit code 255"),
  ],
)
def test_an_exit_is_described_in_words(code, said):
  assert said in restart_policy.describe(code)


def test_delays_double_up_to_the_longest_and_restarts_run_out():
  budget = RestartBudget(5, first_delay_s=1, longest_delay_s=6)
  delays = [budget.next_delay(progressed=False) for _ in range(6)]
  assert delays == [1, 2, 4, 6, 6, None]


def test_progress_forgives_earlier_restarts():
  budget = RestartBudget(2)
  assert [budget.next_delay(progressed=True) for _ in range(20)] == [1.0] * 20
  assert budget.next_delay(progressed=False) == 2.0
  assert budget.next_delay(progressed=False) is None
