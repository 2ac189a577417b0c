"""Stands in for `commentree train`: counts steps, checkpoints each, saves at SIGTERM.

Flags: --gin.MODEL_DIR='"…"', --gin.TRAIN_STEPS=N. A file `mistake` in MODEL_DIR is a
mistake of the user's; `crash` ends each start with a traceback; `enough` is success.
"""

import ast
import json
import os
import pathlib
import signal
import sys
import time


def main():
  flags = dict(f.split("=", 1) for f in sys.argv[2:] if "=" in f)
  model_dir = pathlib.Path(ast.literal_eval(flags["--gin.MODEL_DIR"]))
  model_dir.mkdir(parents=True, exist_ok=True)
  worker = pathlib.Path(os.environ["HOME"]).name
  found = [int(p.name.removeprefix("checkpoint_")) for p in model_dir.glob("check*")]
  step = max(found, default=0)
  record = {"worker": worker, "from": step, "argv": sys.argv[1:],
            "secret": os.environ.get("SECRET"), "pid": os.getpid(),
            "secret_file": os.environ.get("COMMENTREE_HOST_SECRET_FILE")}  # fmt: skip
  with (model_dir / "starts.jsonl").open("a") as stream:
    stream.write(json.dumps(record) + "\n")
  # The workers share the folder: one may find the last step already taken.
  print(f"step {step}", flush=True)
  if (model_dir / "mistake").exists():
    print("commentree: TRAIN_STPES: no such setting", flush=True)
    sys.exit(2)
  if (model_dir / "crash").exists():
    sys.exit(1)
  stopping = []
  signal.signal(signal.SIGTERM, lambda *unused: stopping.append(1))
  last = int(flags["--gin.TRAIN_STEPS"])
  while step < last and not stopping and not (model_dir / "enough").exists():
    time.sleep(0.02)
    step += 1
    (model_dir / f"checkpoint_{step}").mkdir(exist_ok=True)
    print(f"step {step}", flush=True)
  sys.exit(143 if stopping else 0)


if __name__ == "__main__":
  main()
