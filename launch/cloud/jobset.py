"""`commentree launch jobset`: a plain JobSet manifest for TPU slices of GKE."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from commentree.errors import UserError
from commentree.launch.cloud import kubectl, tpu_types, worker_scripts
from commentree.launch.cloud.shell import Shell
from commentree.launch.settings import flags
from commentree.launch.supervision import restart_policy, supervisor
from commentree.training.cluster.coordination import host_secret

_EPILOG = """\
examples:
  look at the manifest, then apply it:
    commentree launch jobset write --name=mine --image=REGISTRY/commentree:1 \\
      --tpu=v5e --topology=4x8 --secret_env=WANDB_API_KEY=wandb/key -- \\
      train --gin_file=runs/pretrain.gin --gin.MODEL_DIR='"gs://bucket/mine"' …
    commentree launch jobset apply …the same…

  while it runs, and after:
    commentree launch jobset logs --name=mine --follow
    commentree launch jobset status --name=mine
    commentree launch jobset delete --name=mine     # saves first, then ends

All pods start again, and resume, when one crashes, is killed or preempted, or loses
another (exit codes 1, 74, 75, 137, 143): --max_restarts times. A mistake of the user's
(2) ends the JobSet at once. --dry_run prints the kubectl commands. See docs/pods.md.
"""

_VERBS = {
  "write": "print the manifest",
  "apply": "apply it with kubectl",
  "status": "show the JobSet and its pods",
  "logs": "show a pod's log",
  "delete": "delete it; pods save first",
}

# A container's exit codes after which starting again changes nothing.
_FINAL_EXIT_CODES = sorted(
  {restart_policy.USER_ERROR, restart_policy.INTERRUPTED, 126, 127}
)

# libtpu's two, Megascale's.
_TPU_PORTS = (8471, 8431, 8080)
# The coordinator's: JAX's own default on TPUs, and the variable that names another.
_COORDINATOR_PORT = 8482
_COORDINATOR_PORT_VARIABLE = "JAX_COORDINATOR_PORT"

_CONTAINER = "train"
_JOB = "slice"


@dataclasses.dataclass(frozen=True)
class JobSetConfig:
  """What a manifest needs.

  Attributes:
    name: of the JobSet; its pods' names and addresses begin with it.
    image: container with commentree, its extra `tpu` installed.
    tpu: generation, by our name: v5e.
    topology: of a slice, such as 4x8.
    command: the commentree command, "train" first.
    num_slices: slices of one run.
    max_restarts: of all pods, before the JobSet fails.
    grace_s: seconds a pod has to save between SIGTERM and SIGKILL.
    spot: run on Spot node pools.
    namespace: None: kubectl's own.
    service_account: of Kubernetes, through which pods reach buckets.
    queue: Kueue's local queue, if it admits jobs.
    env: variables, in plain sight.
    secret_env: variable to (Secret, key).
  """

  name: str
  image: str
  tpu: str
  topology: str
  command: Sequence[str]
  num_slices: int = 1
  max_restarts: int = 20
  grace_s: int = 300
  spot: bool = False
  namespace: str | None = None
  service_account: str | None = None
  queue: str | None = None
  env: Mapping[str, str] = dataclasses.field(default_factory=dict)
  secret_env: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    kubectl.check_name(self.name)
    tpu_types.count_chips(tpu_types.for_gke(self.tpu), self.topology)
    for name, least in (("num_slices", 1), ("max_restarts", 0), ("grace_s", 1)):
      if getattr(self, name) < least:
        raise UserError(f"--{name}={getattr(self, name)}: must be at least {least}")
    if self.num_slices > 1 and self.hosts == 1:
      raise UserError(
        f"--topology={self.topology} --num_slices={self.num_slices}: GKE joins only"
        " slices of several hosts"
      )

  @property
  def chips_per_host(self) -> int:
    """Chips that one pod gets."""
    chips = tpu_types.count_chips(tpu_types.for_gke(self.tpu), self.topology)
    return min(chips, tpu_types.CHIPS_PER_HOST)

  @property
  def hosts(self) -> int:
    """Hosts of a slice, a pod each."""
    chips = tpu_types.count_chips(tpu_types.for_gke(self.tpu), self.topology)
    return chips // self.chips_per_host

  @property
  def makes_host_secret(self) -> bool:
    """Whether there are several hosts, and the user gives them no secret."""
    own = {host_secret.VARIABLE, host_secret.FILE_VARIABLE}
    given = own & (self.env.keys() | self.secret_env.keys())
    return self.hosts * self.num_slices > 1 and not given


def manifest(config: JobSetConfig) -> dict[str, Any]:
  """Returns the JobSet, ready to be dumped as YAML.

  The Job of a slice fails with its first pod, and then all pods start again; only a
  user's mistake fails the JobSet, through the pods' failure policy. GKE itself tells
  each pod its place in the slice (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES); where there
  are several slices, MEGASCALE_* tell JAX how to join them.
  """
  metadata: dict[str, Any] = {"name": config.name}
  if config.namespace:
    metadata["namespace"] = config.namespace
  if config.queue:
    metadata["labels"] = {"kueue.x-k8s.io/queue-name": config.queue}
  # A slice is a node pool: no two Jobs may share one.
  metadata["annotations"] = {
    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
  }
  job = {
    "completionMode": "Indexed",
    "completions": config.hosts,
    "parallelism": config.hosts,
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {
          "action": "FailJob",
          "onExitCodes": {
            "containerName": _CONTAINER,
            "operator": "In",
            "values": _FINAL_EXIT_CODES,
          },
        }
      ]
    },
    "template": {"spec": _pod(config)},
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "network": {
        "enableDNSHostnames": True,
        "publishNotReadyAddresses": True,
        "subdomain": config.name,
      },
      "failurePolicy": {
        "maxRestarts": config.max_restarts,
        "rules": [
          {
            "name": "usersMistake",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
          }
        ],
      },
      "replicatedJobs": [
        {
          "name": _JOB,
          "replicas": config.num_slices,
          "template": {"spec": job},
        }
      ],
    },
  }


def _pod(config: JobSetConfig) -> dict[str, Any]:
  generation = tpu_types.for_gke(config.tpu)
  selector = {
    "cloud.google.com/gke-tpu-accelerator": generation.gke_accelerator,
    "cloud.google.com/gke-tpu-topology": config.topology,
  }
  if config.spot:
    selector["cloud.google.com/gke-spot"] = "true"
  chips = {"google.com/tpu": config.chips_per_host}
  pod: dict[str, Any] = {
    "restartPolicy": "Never",
    "hostNetwork": True,
    "dnsPolicy": "ClusterFirstWithHostNet",
    "nodeSelector": selector,
    "terminationGracePeriodSeconds": config.grace_s,
  }
  if config.service_account:
    pod["serviceAccountName"] = config.service_account
  pod["containers"] = [
    {
      "name": _CONTAINER,
      "image": config.image,
      "command": ["commentree", *map(_literal, kubectl.patient(config.command))],
      "env": _env(config),
      # The TPU's devices are the host's own.
      "securityContext": {"privileged": True},
      "ports": [{"containerPort": port} for port in _ports(config)],
      "resources": {"requests": dict(chips), "limits": dict(chips)},
    }
  ]
  return pod


def _ports(config: JobSetConfig) -> list[int]:
  given = config.env.get(_COORDINATOR_PORT_VARIABLE, str(_COORDINATOR_PORT))
  if not (given.isdecimal() and 0 < int(given) < 2**16):
    raise UserError(
      f"--env={_COORDINATOR_PORT_VARIABLE}={given}: must be a port, from 1 to"
      f" {2**16 - 1}"
    )
  return [*_TPU_PORTS, int(given)]


def _env(config: JobSetConfig) -> list[dict[str, Any]]:
  variables: list[dict[str, Any]] = []
  if config.num_slices > 1:
    index = "metadata.labels['jobset.sigs.k8s.io/job-index']"
    coordinator = f"{config.name}-{_JOB}-0-0.{config.name}"
    variables += [
      {"name": "MEGASCALE_NUM_SLICES", "value": str(config.num_slices)},
      {
        "name": "MEGASCALE_SLICE_ID",
        "valueFrom": {"fieldRef": {"fieldPath": index}},
      },
      {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": coordinator},
    ]
  if config.makes_host_secret:
    # Optional, as `write` makes none: hosts then say that they were given none.
    source = {
      "name": kubectl.host_secret_name(config.name),
      "key": kubectl.HOST_SECRET_KEY,
      "optional": True,
    }
    variables.append(
      {"name": host_secret.VARIABLE, "valueFrom": {"secretKeyRef": source}}
    )
  variables += [
    {"name": name, "value": _literal(value)} for name, value in config.env.items()
  ]
  variables += [
    {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
    for name, (secret, key) in config.secret_env.items()
  ]
  return variables


def _literal(text: str) -> str:
  """Keeps Kubernetes from putting variables into $(…)."""
  return text.replace("$", "$$")


def dump(document: Mapping[str, Any]) -> str:
  """Returns a manifest as YAML."""
  return yaml.safe_dump(
    document, sort_keys=False, allow_unicode=True, width=88, default_flow_style=False
  )


def main(argv: Sequence[str]) -> int:
  """Runs one of the verbs; returns the exit code."""
  parser = _parser()
  makes = bool(argv) and argv[0] in ("write", "apply")
  if makes and not {"-h", "--help"} & set(argv):
    arguments, command = supervisor.parse(parser, argv)
  else:
    arguments, command = parser.parse_args(argv), []
  shell = Shell(getattr(arguments, "dry_run", False))
  pods = kubectl.Pods(arguments.name, arguments.namespace, arguments.context, shell)
  match arguments.verb:
    case "write":
      print(dump(manifest(_config(arguments, command))), end="")
    case "apply":
      config = _config(arguments, command)
      document = dump(manifest(config))
      if config.makes_host_secret:
        pods.make_host_secret()
      pods.apply(document)
    case "status":
      pods.status()
    case "logs":
      pods.logs(
        arguments.slice, arguments.host, arguments.lines, follow=arguments.follow
      )
    case "delete":
      pods.delete()
  return 0


def _config(arguments: argparse.Namespace, command: Sequence[str]) -> JobSetConfig:
  for flag in arguments.env:
    if "=" not in flag:
      raise UserError(
        f"--env={flag}: write {flag}=VALUE, or --secret_env={flag}=SECRET/KEY for what"
        " no one is to see in the manifest"
      )
  return JobSetConfig(
    name=arguments.name,
    image=arguments.image,
    tpu=arguments.tpu,
    topology=arguments.topology,
    command=command,
    num_slices=arguments.num_slices,
    max_restarts=arguments.max_restarts,
    grace_s=arguments.grace_s,
    spot=arguments.spot,
    namespace=arguments.namespace,
    service_account=arguments.service_account,
    queue=arguments.queue,
    env=worker_scripts.parse_env(arguments.env, {}),
    secret_env=dict(map(_secret, arguments.secret_env)),
  )


def _secret(flag: str) -> tuple[str, tuple[str, str]]:
  found = re.fullmatch(r"([A-Za-z_]\w*)=([-a-z0-9.]+)/([-\w.]+)", flag)
  if not found:
    raise UserError(
      f"--secret_env={flag.partition('=')[0]}: write KEY=SECRET/KEY_IN_IT"
    )
  return found[1], (found[2], found[3])


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="commentree launch jobset",
    description="Train on TPU slices of GKE, as a JobSet.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  for verb, what in _VERBS.items():
    makes = verb in ("write", "apply")
    usage = "%(prog)s [FLAGS]" + (" -- train …" if makes else "")
    one = verbs.add_parser(
      verb, help=what, description=what, usage=usage, allow_abbrev=False
    )
    kubectl.add_flags(one, dry_run=verb != "write")
    if makes:
      _add_manifest_flags(one)
    if verb == "logs":
      kubectl.add_log_flags(one)
  return parser


def _add_manifest_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--image", required=True, help="with commentree[tpu] installed")
  parser.add_argument(
    "--tpu", required=True, help="generation: v4, v5e, v5p, v6e, tpu7x"
  )
  parser.add_argument("--topology", required=True, help="of a slice, such as 4x8")
  for flag, what in (
    ("num_slices", "slices of one run"),
    ("max_restarts", "restarts of all pods before the JobSet fails"),
    ("grace_s", "seconds a pod has to save after SIGTERM"),
  ):
    flags.add_number(parser, f"--{flag}", getattr(JobSetConfig, flag), what)
  parser.add_argument("--spot", action="store_true", help="on Spot node pools")
  parser.add_argument("--service_account", help="Kubernetes' own, for buckets")
  parser.add_argument("--queue", help="local queue of Kueue")
  parser.add_argument(
    "--env", action="append", default=[], metavar="KEY=VALUE", help="(repeatable)"
  )
  parser.add_argument(
    "--secret_env",
    action="append",
    default=[],
    metavar="KEY=SECRET/KEY",
    help="variable from a Secret of the cluster's (repeatable)",
  )
