"""The pods of a JobSet through `kubectl`: applied, watched, deleted.

xpk's workloads are JobSets too: their logs are read here.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence

from commentree.errors import UserError
from commentree.launch.cloud.shell import Shell
from commentree.launch.settings import flags
from commentree.training.cluster.coordination import host_secret

# With a Job's index and a pod's, the longest name must stay within 63 characters.
_LONGEST_NAME = 40

# Of the Secret by which the hosts know each other.
HOST_SECRET_KEY = "secret"

# Pods of one run start as far apart.
_HOST_WAIT_S = 900


def check_name(name: str) -> None:
  """Checks the name of a JobSet.

  Raises:
    UserError: if pods could not be named after it.
  """
  if len(name) > _LONGEST_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
    raise UserError(
      f"--name={name}: write up to {_LONGEST_NAME} small letters, digits and hyphens,"
      " a letter first"
    )


def host_secret_name(name: str) -> str:
  """Returns the name of the Secret of a JobSet's hosts."""
  return f"{name}-hosts"


def patient(command: Sequence[str]) -> list[str]:
  """Returns a command whose hosts wait for each other as long as images load."""
  flag = "--host_wait_seconds"
  if command[0] != "train" or any(word.startswith(flag) for word in command):
    return list(command)
  return [*command, f"{flag}={_HOST_WAIT_S}"]


@dataclasses.dataclass(frozen=True)
class Pods:
  """A JobSet and its pods.

  Attributes:
    name: of the JobSet.
    namespace, context: kubectl's; None: its own settings.
    shell: runs kubectl.
  """

  name: str
  namespace: str | None
  context: str | None
  shell: Shell

  def __post_init__(self):
    check_name(self.name)

  def make_host_secret(self) -> None:
    """Makes the Secret by which the run's hosts know each other, anew."""
    self._delete_host_secret()
    what = ["create", "secret", "generic", host_secret_name(self.name)]
    source = f"--from-file={HOST_SECRET_KEY}=/dev/stdin"
    self.shell.feed(
      [*self._kubectl, *what, source], host_secret.make(), maker=host_secret.MAKE
    )

  def apply(self, manifest: str) -> None:
    """Applies a manifest, YAML."""
    self.shell.feed([*self._kubectl, "apply", "--filename=-"], manifest)

  def status(self) -> None:
    """Shows the JobSet and its pods."""
    self.shell.run([*self._kubectl, "get", "jobset", self.name])
    self.shell.run([*self._kubectl, "get", "pods", self._selector, "--output=wide"])

  def logs(self, slice_index: int, host: int, lines: int, *, follow: bool) -> None:
    """Becomes kubectl showing the log of one host's pod."""
    selector = (
      f"{self._selector},jobset.sigs.k8s.io/job-index={slice_index},"
      f"batch.kubernetes.io/job-completion-index={host}"
    )
    self.shell.replace(
      [*self._kubectl, "logs", selector, f"--tail={lines}"]
      + (["--follow"] if follow else [])
    )

  def delete(self) -> None:
    """Deletes the JobSet; its pods get SIGTERM, and their time to save."""
    self.shell.run([*self._kubectl, "delete", "jobset", self.name])
    self._delete_host_secret()

  def _delete_host_secret(self) -> None:
    what = ["delete", "secret", host_secret_name(self.name), "--ignore-not-found"]
    self.shell.run([*self._kubectl, *what])

  @property
  def _kubectl(self) -> list[str]:
    given = (("context", self.context), ("namespace", self.namespace))
    return ["kubectl", *(f"--{name}={value}" for name, value in given if value)]

  @property
  def _selector(self) -> str:
    return f"--selector=jobset.sigs.k8s.io/jobset-name={self.name}"


def add_flags(parser: argparse.ArgumentParser, *, dry_run: bool = True) -> None:
  """Adds the flags that say which JobSet."""
  parser.add_argument("--name", required=True, help="of the JobSet")
  parser.add_argument("--namespace", help="(default: kubectl's setting)")
  parser.add_argument("--context", help="cluster (default: kubectl's setting)")
  if dry_run:
    parser.add_argument(
      "--dry_run", action="store_true", help="print what would run, and run nothing"
    )


def add_log_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that say which log."""
  parser.add_argument("--follow", action="store_true", help="go on as it grows")
  flags.add_number(parser, "--slice", 0, "number of the slice")
  flags.add_number(parser, "--host", 0, "number of the host in its slice")
  flags.add_number(parser, "--lines", 100, "how many")
