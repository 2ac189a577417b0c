"""Stands in for `kubectl`: records calls, runs a manifest's containers once, here.

What a container's command becomes once Kubernetes has put variables into it goes, as
JSON, to $FAKE_CLOUD/containers.jsonl, for every pod of the JobSet; what a Secret is
made of to $FAKE_CLOUD/secret.
"""

import json
import os
import pathlib
import re
import sys

import yaml

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])


def expand(text, variables):
  """Puts variables into $(NAME), as Kubernetes does; `$$` is a dollar."""

  def replace(found):
    if found[0] == "$$":
      return "$"
    return variables.get(found[1], found[0])

  return re.sub(r"\$\$|\$\(([^()]*)\)", replace, text)


def main():
  with (CLOUD / "calls.jsonl").open("a") as stream:
    stream.write(json.dumps(["kubectl", *sys.argv[1:]]) + "\n")
  words = [word for word in sys.argv[1:] if not word.startswith("--")]
  if words[:3] == ["create", "secret", "generic"]:
    (CLOUD / "secret").write_text(sys.stdin.read())
  if words[0] != "apply":
    print(f"kubectl {' '.join(words)}")
    return
  jobset = yaml.safe_load(sys.stdin)
  (CLOUD / "jobset.json").write_text(json.dumps(jobset))
  for replicated in jobset["spec"]["replicatedJobs"]:
    job = replicated["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    for slice_index in range(replicated["replicas"]):
      for host in range(job["completions"]):
        variables = {}
        for variable in container["env"]:
          value = variable.get("value", "from elsewhere")
          variables[variable["name"]] = expand(value, variables)
        record = {
          "slice": slice_index,
          "host": host,
          "env": variables,
          "argv": [expand(word, variables) for word in container["command"]],
        }
        with (CLOUD / "containers.jsonl").open("a") as stream:
          stream.write(json.dumps(record) + "\n")


if __name__ == "__main__":
  main()
