"""Stands in for `gcloud compute tpus`: a cloud in the folder $FAKE_CLOUD.

    settings.json     {"workers": workers of a slice, "looks": states before ACTIVE}
    calls.jsonl       the arguments of every call
    requests/NAME     state of a queued resource and its nodes, JSON
    node_state        if there: the state of all TPU VMs
    homes/NODE-wI     home of worker I; ssh runs there, through bash, for real

Workers are given a `python3` that makes virtual environments of stand-ins.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

CLOUD = pathlib.Path(os.environ.get("FAKE_CLOUD", "."))
HERE = pathlib.Path(__file__).parent
WAY_TO_ACTIVE = ["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def fail(message):
  print(f"ERROR: (gcloud.compute.tpus) {message}", file=sys.stderr)
  sys.exit(1)


def request_file(name):
  return CLOUD / "requests" / name


def load(name):
  if not request_file(name).exists():
    fail(f"NOT_FOUND: Resource '{name}' was not found")
  return json.loads(request_file(name).read_text())


def save(name, request):
  request_file(name).parent.mkdir(exist_ok=True)
  request_file(name).write_text(json.dumps(request))


def settings():
  return json.loads((CLOUD / "settings.json").read_text())


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def workers_of(node):
  return sorted((CLOUD / "homes").glob(f"{node}-w*"))


def make_workers(node):
  for i in range(settings()["workers"]):
    home = CLOUD / "homes" / f"{node}-w{i}"
    executable(home / "bin" / "hostname", f"#!/bin/sh\necho {home.name}\n")
    python = shlex.join([sys.executable, str(HERE / "worker_python.py")])
    executable(home / "bin" / "python3", f'#!/bin/sh\nexec {python} "$@"\n')


def end_workers(nodes, number=signal.SIGKILL):
  """Ends what runs in the homes of workers, then takes the homes away."""
  homes = [str(home) for node in nodes for home in workers_of(node)]
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      environ = (process / "environ").read_bytes().split(b"\0")
    except OSError:
      continue
    if any(f"HOME={home}".encode() in environ for home in homes):
      with contextlib.suppress(ProcessLookupError):
        os.kill(int(process.name), number)
  time.sleep(0.05)
  for home in homes:
    target = CLOUD / "gone" / f"{pathlib.Path(home).name}-{time.monotonic_ns()}"
    target.parent.mkdir(exist_ok=True)
    shutil.move(home, target)


def queued_resources(verb, name, flags):
  if verb == "create":
    if request_file(name).exists():
      fail(f"ALREADY_EXISTS: Resource '{name}' already exists")
    nodes = [flags.node_id]
    if flags.node_count:
      nodes = [f"{flags.node_prefix}-{i}" for i in range(int(flags.node_count))]
    save(name, {"looks": 0, "nodes": nodes, "state": "CREATING", "flags": sys.argv})
  elif verb == "describe":
    request = load(name)
    if request["state"] in WAY_TO_ACTIVE[:-1]:
      step = min(request["looks"] * 3 // max(settings()["looks"], 1), 3)
      request["looks"] += 1
      request["state"] = settings().get("fate", WAY_TO_ACTIVE[step])
      if request["state"] == "ACTIVE":
        for node in request["nodes"]:
          make_workers(node)
      save(name, request)
    state = {"state": request["state"]}
    state["stateInitiator"] = request.get("initiator", "SERVICE")
    if request["state"] == "FAILED":
      state["failedData"] = {"error": {"message": "no quota for this"}}
    print(json.dumps({"name": name, "state": state}))
  elif verb == "delete":
    request = load(name)
    if request["state"] == "SUSPENDING":
      request["state"] = "SUSPENDED"
      save(name, request)
      fail("FAILED_PRECONDITION: it is being suspended")
    end_workers(request["nodes"])
    request_file(name).unlink()


def tpu_vm(verb, words, flags):
  node = words[-1].partition(":")[0]
  homes = workers_of(node)
  state = (CLOUD / "node_state").read_text() if (CLOUD / "node_state").exists() else ""
  if verb == "describe" and (homes or state):
    print(json.dumps({"name": node, "state": state or "READY"}))
  elif not homes:
    fail(f"NOT_FOUND: Resource '{node}' was not found")
  elif verb == "scp":
    *sources, target = words
    for home in homes:
      for source in sources:
        shutil.copy2(source, home / target.partition(":")[2])
  elif verb == "ssh":
    if flags.worker != "all":
      homes = [homes[int(flags.worker)]]
    running = [
      subprocess.Popen(
        ["bash", "-c", flags.command],
        cwd=home,
        env={"HOME": str(home), "PATH": f"{home}/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
      )
      for home in homes
    ]
    sys.exit(max(process.wait() for process in running))


def main():
  with (CLOUD / "calls.jsonl").open("a") as stream:
    stream.write(json.dumps(["gcloud", *sys.argv[1:]]) + "\n")
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("words", nargs="+")
  for flag in ("zone", "project", "format", "worker", "command", "accelerator-type",
               "type", "topology", "runtime-version", "node-id", "node-count",
               "node-prefix", "service-account", "network", "subnetwork",
               "valid-until-duration"):  # fmt: skip
    parser.add_argument(f"--{flag}")
  for flag in ("spot", "reserved", "force", "quiet"):
    parser.add_argument(f"--{flag}", action="store_true")
  flags = parser.parse_args()
  assert flags.words[:2] == ["compute", "tpus"], flags.words
  kind, verb, *words = flags.words[2:]
  if kind == "queued-resources":
    queued_resources(verb, words[0], flags)
  else:
    tpu_vm(verb, words, flags)


if __name__ == "__main__":
  main()
