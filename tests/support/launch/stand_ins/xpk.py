"""Stands in for `xpk`: records calls, runs a workload's command as xpk's pods do.

There is a `commentree` on that command's PATH that writes its arguments, as JSON, to
$FAKE_CLOUD/containers.jsonl; given --wait, it then waits for SIGTERM, and touches
`saved` when that comes.
"""

import json
import os
import pathlib
import shlex
import stat
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])

# How xpk's manifest wraps a command.
WRAPPER = """
_sigterm() (kill -SIGTERM $! 2>/dev/null;);
trap _sigterm SIGTERM;
({command}) & PID=$!;
while kill -0 $PID 2>/dev/null;
    do sleep 0.1;
done;
wait $PID;
EXIT_CODE=$?;
exit $EXIT_CODE
"""

PROGRAM = """
import json, os, pathlib, signal, sys, time
path = pathlib.Path(os.environ["FAKE_CLOUD"]) / "containers.jsonl"
with path.open("a") as stream:
  stream.write(json.dumps(sys.argv[1:]) + chr(10))
if "--wait" in sys.argv:
  def save(*unused):
    path.with_name("saved").touch()
    sys.exit(143)
  signal.signal(signal.SIGTERM, save)
  path.with_name("waiting").touch()
  time.sleep(30)
"""


def main():
  with (CLOUD / "calls.jsonl").open("a") as stream:
    stream.write(json.dumps(["xpk", *sys.argv[1:]]) + "\n")
  if sys.argv[1:3] != ["workload", "create"]:
    print(f"xpk {' '.join(sys.argv[1:3])}")
    return
  flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[3:])
  if "env-file" in flags:
    path = pathlib.Path(flags["env-file"])
    record = {"mode": stat.S_IMODE(path.stat().st_mode), "text": path.read_text()}
    (CLOUD / "env.json").write_text(json.dumps(record))
  folder = CLOUD / "container bin"
  folder.mkdir(exist_ok=True)
  words = shlex.join([sys.executable, "-c", PROGRAM])
  (folder / "commentree").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
  (folder / "commentree").chmod(0o755)
  # Kubernetes makes a dollar of two; what is in no $(…) of its own it leaves.
  script = WRAPPER.format(command=flags["command"]).replace("$$", "$")
  os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
  process = subprocess.Popen(["bash", "-c", script])
  (CLOUD / "pod.pid").write_text(str(process.pid))
  sys.exit(process.wait())


if __name__ == "__main__":
  main()
