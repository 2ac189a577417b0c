"""`commentree launch`: brings runs up, on this machine, TPU VMs and GKE."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from commentree.errors import UserError

TARGETS = {
  "local": "many hosts on this machine: a real run over processes, without a TPU",
  "supervise": "the one process of a real host, restarted when it fails",
  "tpu": "TPU VM slices and queued resources of Cloud TPU",
  "jobset": "TPU slices of GKE, by a plain JobSet manifest",
  "xpk": "TPU slices of a GKE cluster that xpk set up",
}

_MODULES = {
  "local": "commentree.launch.supervision.local",
  "supervise": "commentree.launch.supervision.supervise",
  "tpu": "commentree.launch.cloud.tpu",
  "jobset": "commentree.launch.cloud.jobset",
  "xpk": "commentree.launch.cloud.xpk",
}


def usage() -> str:
  """The text of `commentree launch --help`."""
  lines = ["usage: commentree launch TARGET [FLAGS] -- train …", "", "targets:"]
  lines += [f"  {target:<11}{what}" for target, what in TARGETS.items()]
  lines += [
    "",
    "examples:",
    "  four real processes of two CPU devices each:",
    "    commentree launch local --hosts 4 --devices_per_host 2 -- \\",
    "      train --gin_file=runs/demo.gin --gin.MODEL_DIR='\"runs/demo\"'",
    "  a TPU slice, created, set up, run and watched:",
    "    commentree launch tpu up --name=mine --accelerator_type=v5litepod-64 -- \\",
    "      train --gin_file=runs/pretrain.gin …",
    "",
    "commentree launch TARGET --help shows a target's flags, with more examples.",
  ]
  return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
  """Launches on a target; returns the exit code."""
  if not argv or argv[0] in ("-h", "--help"):
    print(usage())
    return 0
  target, *rest = argv
  if target not in TARGETS:
    raise UserError(f"launch: no target {target!r}; there are {', '.join(TARGETS)}")
  return importlib.import_module(_MODULES[target]).main(rest)
