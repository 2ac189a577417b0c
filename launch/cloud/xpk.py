"""`commentree launch xpk`: workloads of GKE clusters that xpk set up."""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import tempfile
from collections.abc import Sequence

from commentree.errors import UserError
from commentree.launch.cloud import kubectl, worker_scripts
from commentree.launch.cloud.shell import Shell, write_private
from commentree.launch.settings import flags
from commentree.launch.supervision import restart_policy, supervisor
from commentree.training.cluster.coordination import host_secret

_EPILOG = """\
examples:
    commentree launch xpk create --name=mine --cluster=ours --tpu_type=v5litepod-64 \\
      --image=REGISTRY/commentree:1 --env=WANDB_API_KEY -- \\
      train --gin_file=runs/pretrain.gin --gin.MODEL_DIR='"gs://bucket/mine"' …
    commentree launch xpk status --name=mine --cluster=ours
    commentree launch xpk logs --name=mine --follow
    commentree launch xpk delete --name=mine --cluster=ours

--dry_run prints the xpk and kubectl commands and runs none. See docs/pods.md.
"""

_VERBS = {
  "create": "start a workload",
  "status": "show the workload",
  "logs": "show a pod's log",
  "delete": "delete the workload; pods save first",
}

# xpk itself starts again after 42 and 127 to 255: deaths by signal are among them.
_RESTARTED = (1, restart_policy.STORAGE_REFUSED, restart_policy.HOST_LOST)


def main(argv: Sequence[str]) -> int:
  """Runs one of the verbs; returns the exit code."""
  parser = _parser()
  if argv and argv[0] == "create" and not {"-h", "--help"} & set(argv):
    arguments, command = supervisor.parse(parser, argv)
  else:
    arguments, command = parser.parse_args(argv), []
  kubectl.check_name(arguments.name)
  shell = Shell(arguments.dry_run)
  match arguments.verb:
    case "create":
      _create(arguments, command, shell)
    case "status":
      what = [f"--filter-by-job=^{arguments.name}$", *_where(arguments)]
      shell.run(["xpk", "workload", "list", *what])
    case "logs":
      pods = kubectl.Pods(arguments.name, arguments.namespace, arguments.context, shell)
      pods.logs(
        arguments.slice, arguments.host, arguments.lines, follow=arguments.follow
      )
    case "delete":
      what = [f"--workload={arguments.name}", *_where(arguments)]
      shell.run(["xpk", "workload", "delete", *what])
  return 0


def _where(arguments: argparse.Namespace) -> list[str]:
  given = (("cluster", "cluster"), ("zone", "zone"), ("project", "project"))
  return [
    f"--{flag}={getattr(arguments, name)}"
    for flag, name in given
    if getattr(arguments, name)
  ]


def container_command(command: Sequence[str]) -> str:
  """Returns a command as xpk's containers take it: text for their bash.

  Raises:
    UserError: for line ends, which the manifest that xpk makes of it cannot hold.
  """
  if any("\n" in argument for argument in command):
    raise UserError("xpk cannot pass on a line end; put the setting into a gin file")
  # `exec`, so that SIGTERM reaches the run itself; `$$` is Kubernetes' own `$`.
  text = shlex.join(kubectl.patient(command))
  return f"exec commentree {text}".replace("$", "$$")


def _create(
  arguments: argparse.Namespace, command: Sequence[str], shell: Shell
) -> None:
  # As xpk has no other way, whoever may read the workload in the cluster can read it.
  secret = {host_secret.VARIABLE: host_secret.make()}
  env = {**secret, **worker_scripts.parse_env(arguments.env, os.environ)}
  what = [
    f"--workload={arguments.name}",
    *_where(arguments),
    f"--tpu-type={arguments.tpu_type}",
    f"--num-slices={arguments.num_slices}",
    f"--docker-image={arguments.image}",
    f"--max-restarts={arguments.max_restarts}",
    f"--restart-on-exit-codes={','.join(map(str, _RESTARTED))}",
    f"--termination-grace-period-seconds={arguments.grace_s}",
    f"--command={container_command(command)}",
  ]
  with tempfile.TemporaryDirectory(prefix="commentree_") as folder:
    path = pathlib.Path(folder) / "env"
    _write_env_file(path, env)
    what.insert(-1, f"--env-file={path}")
    shell.note(f"{path}, mode 600, sets {', '.join(env)}")
    shell.run(["xpk", "workload", "create", *what])


def _write_env_file(path: pathlib.Path, env: dict[str, str]) -> None:
  for name, value in env.items():
    if "\n" in value:
      raise UserError(f"--env={name}: xpk cannot pass on a line end")
  write_private(path, "".join(f"{name}={value}\n" for name, value in env.items()))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="commentree launch xpk",
    description="Train on a GKE cluster that xpk set up.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  for verb, what in _VERBS.items():
    usage = "%(prog)s [FLAGS]" + (" -- train …" if verb == "create" else "")
    one = verbs.add_parser(
      verb, help=what, description=what, usage=usage, allow_abbrev=False
    )
    if verb == "logs":
      kubectl.add_flags(one)
      kubectl.add_log_flags(one)
      continue
    one.add_argument("--name", required=True, help="of the workload")
    one.add_argument("--cluster", required=True, help="that xpk made")
    one.add_argument("--zone", help="(default: gcloud's setting)")
    one.add_argument("--project", help="(default: gcloud's setting)")
    one.add_argument(
      "--dry_run", action="store_true", help="print what would run, and run nothing"
    )
    if verb == "create":
      _add_workload_flags(one)
  return parser


def _add_workload_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--image", required=True, help="with commentree[tpu] installed")
  parser.add_argument(
    "--tpu_type", required=True, help="such as v5litepod-64, v6e-256 or tpu7x-4x4x4"
  )
  flags.add_number(parser, "--num_slices", 1, "slices of one run")
  flags.add_number(
    parser, "--max_restarts", 20, "restarts of all pods before the workload fails"
  )
  flags.add_number(parser, "--grace_s", 300, "seconds a pod has to save after SIGTERM")
  parser.add_argument(
    "--env",
    action="append",
    default=[],
    metavar="KEY[=VALUE]",
    help="variable of the run; KEY alone passes your own value on. xpk writes it into"
    " the manifest: for secrets prefer `launch jobset --secret_env` (repeatable)",
  )
