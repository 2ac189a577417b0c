"""Stands in for `commentree train` under a supervisor: does what a plan tells it.

    host_stand_in.py FOLDER [flags of a host]

FOLDER/plan.json holds, for each start and each host, actions to do in turn:
["exit", CODE], ["kill", SIGNAL], ["sleep", SECONDS], ["print", TEXT],
["checkpoint", STEP], ["ignore_sigterm"], ["serve"] (until SIGTERM or SIGINT, then exit
as a run that saved), ["save_slowly", SECONDS] (likewise, and touch FOLDER/saved). What
it was started with goes to FOLDER/started.jsonl.
"""

import json
import os
import pathlib
import signal
import sys
import time


def serve():
  def end(number, frame):
    sys.exit(128 + number)

  signal.signal(signal.SIGTERM, end)
  signal.signal(signal.SIGINT, end)
  folder = pathlib.Path(sys.argv[1])
  (folder / f"serving_{os.getpid()}").touch()
  while True:
    time.sleep(0.02)


def save_slowly(seconds):
  """Saves for a while at the first SIGTERM; a second one kills it meanwhile."""

  def save(number, frame):
    signal.signal(number, signal.SIG_DFL)
    time.sleep(seconds)
    (pathlib.Path(sys.argv[1]) / "saved").touch()
    sys.exit(128 + number)

  signal.signal(signal.SIGTERM, save)
  (pathlib.Path(sys.argv[1]) / f"serving_{os.getpid()}").touch()
  while True:
    time.sleep(0.02)


def main():
  folder, *flags = sys.argv[1:]
  folder = pathlib.Path(folder)
  given = dict(f.removeprefix("--").split("=", 1) for f in flags if "=" in f)
  host = int(given.get("process_index", 0))
  counter = folder / f"starts_{host}"
  start = int(counter.read_text()) if counter.exists() else 0
  counter.write_text(str(start + 1))
  record = {
    "host": host,
    "start": start,
    "pid": os.getpid(),
    "flags": flags,
    "env": {name: os.environ.get(name) for name in ("XLA_FLAGS", "JAX_PLATFORMS")},
    "secret": os.environ.get("COMMENTREE_HOST_SECRET"),
  }
  with (folder / "started.jsonl").open("a") as stream:
    stream.write(json.dumps(record) + "\n")
  plan = json.loads((folder / "plan.json").read_text())
  actions = plan[min(start, len(plan) - 1)]
  for action, *values in actions[host] if host < len(actions) else []:
    if action == "exit":
      sys.exit(values[0])
    elif action == "kill":
      os.kill(os.getpid(), values[0])
      time.sleep(60)
    elif action == "sleep":
      time.sleep(values[0])
    elif action == "print":
      print(values[0], flush=True)
    elif action == "checkpoint":
      (folder / "model" / f"checkpoint_{values[0]}").mkdir(parents=True, exist_ok=True)
    elif action == "ignore_sigterm":
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif action == "serve":
      serve()
    elif action == "save_slowly":
      save_slowly(values[0])


if __name__ == "__main__":
  main()
