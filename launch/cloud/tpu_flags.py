"""The flags of `commentree launch tpu`."""

from __future__ import annotations

import argparse

from commentree.launch.cloud.queued_resources import PATIENCE_S

_EPILOG = """\
examples:
  everything at once: ask, wait, set up, run; again when a spot slice is taken away:
    commentree launch tpu up --name=mine --zone=us-west4-a \\
      --accelerator_type=v5litepod-64 --spot --env=WANDB_API_KEY \\
      --copy=trees.model --prepare='gcloud storage cp gs://bucket/trees.jsonl.gz .' \\
      -- train --gin_file=runs/pretrain.gin --gin.MODEL_DIR='"gs://bucket/mine"' …

  step by step:
    commentree launch tpu create --name=mine --accelerator_type=v5litepod-64
    commentree launch tpu wait --name=mine
    commentree launch tpu setup --name=mine
    commentree launch tpu run --name=mine -- train …

  while it runs, and after:
    commentree launch tpu logs --name=mine --follow
    commentree launch tpu status --name=mine
    commentree launch tpu stop --name=mine      # saves on all workers, then ends
    commentree launch tpu delete --name=mine    # ends the bill

--dry_run prints the gcloud commands and runs none. See docs/pods.md.
"""

_VERBS = {
  "create": "ask for slices",
  "wait": "wait until they are there",
  "setup": "install commentree on all workers",
  "run": "start a command on all workers, in the background",
  "logs": "show a worker's log",
  "status": "show the state of the request and of the run",
  "stop": "have the run save and end on all workers",
  "delete": "delete the slices, which ends the bill",
  "up": "create, wait, setup, run, then watch: recreate and resume what is preempted",
}


def parser() -> argparse.ArgumentParser:
  """Returns the parser of all verbs."""
  made = argparse.ArgumentParser(
    prog="commentree launch tpu",
    description="Train on TPU VM slices, asked for as queued resources of Cloud TPU.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
  for verb, what in _VERBS.items():
    usage = "%(prog)s [FLAGS]" + (" -- train …" if verb in ("run", "up") else "")
    one = verbs.add_parser(
      verb, help=what, description=what, usage=usage, allow_abbrev=False
    )
    _add_place_flags(one)
    if verb in ("create", "up"):
      _add_request_flags(one)
    if verb in ("setup", "up"):
      one.add_argument(
        "--package",
        metavar="SPEC",
        help="a wheel, or what pip takes, such as git+https://… (default: the source"
        " of this commentree)",
      )
      one.add_argument(
        "--copy",
        action="append",
        default=[],
        metavar="FILE",
        help="small file, such as a vocabulary or a gin file, put into the folder that"
        " the run starts in (repeatable)",
      )
      one.add_argument(
        "--prepare",
        metavar="COMMAND",
        help="run there by bash on every worker, such as"
        " 'gcloud storage cp gs://bucket/trees.jsonl.gz .'",
      )
    if verb in ("run", "up"):
      _add_run_flags(one)
    if verb in ("wait", "up"):
      one.add_argument(
        "--poll_s",
        type=float,
        default=30,
        metavar="S",
        help="seconds between looks (default 30)",
      )
      one.add_argument(
        "--patience_s",
        type=float,
        default=PATIENCE_S,
        metavar="S",
        help="seconds that gcloud may fail, or (`up`) VMs of an active request be away,"
        " before it is given up, or new ones asked for (default %(default)g)",
      )
    if verb == "up":
      one.add_argument(
        "--delete_when_done",
        action="store_true",
        help="delete the slices once the run has ended well",
      )
    if verb == "logs":
      one.add_argument("--follow", action="store_true", help="go on as it grows")
      one.add_argument(
        "--worker", default="0", help="a number, or all (default 0)", metavar="N"
      )
      one.add_argument("--lines", type=int, default=100, metavar="N", help="how many")
    if verb == "stop":
      one.add_argument(
        "--timeout_s",
        type=int,
        default=900,
        metavar="S",
        help="seconds it may take to save (default 900)",
      )
  return made


def _add_place_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--name", required=True, help="of the queued resource")
  parser.add_argument("--zone", help="such as us-west4-a (default: gcloud's setting)")
  parser.add_argument("--project", help="(default: gcloud's setting)")
  parser.add_argument(
    "--num_slices", type=int, default=1, metavar="N", help="of one run (default 1)"
  )
  parser.add_argument(
    "--dry_run", action="store_true", help="print what would run, and run nothing"
  )


def _add_request_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--accelerator_type", help="such as v5litepod-64")
  parser.add_argument("--type", help="with --topology instead, such as v4")
  parser.add_argument("--topology", help="such as 2x2x4")
  parser.add_argument(
    "--runtime_version", help="of the VMs (default: by the accelerator type)"
  )
  parser.add_argument("--spot", action="store_true", help="cheaper, preemptible")
  parser.add_argument("--reserved", action="store_true", help="from a reservation")
  parser.add_argument("--service_account", help="the VMs' own")
  parser.add_argument("--network", help="of the VMs")
  parser.add_argument("--subnetwork", help="of the VMs")
  parser.add_argument(
    "--valid_until_duration", help="time in the queue, such as 6h (default: any)"
  )


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--env",
    action="append",
    default=[],
    metavar="KEY[=VALUE]",
    help="variable of the run; KEY alone passes your own value on, unseen (repeatable)",
  )
  parser.add_argument(
    "--max_restarts",
    type=int,
    default=10,
    metavar="N",
    help="restarts in a row without a newer checkpoint (default 10)",
  )
