"""`launch jobset` and `launch xpk`, over stand-in kubectl and xpk.

Kubernetes' published schemas of Jobs come with the package kubernetes-validate. None
ships JobSet's, so what is used of it is written down here by hand, after the CRD
jobset.x-k8s.io/v1alpha2.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import jsonschema
import kubernetes_validate
import pytest
import yaml

from commentree.errors import UserError
from commentree.launch import main
from commentree.launch.cloud import jobset, tpu_types, xpk

ODD = '--gin.MODEL_DIR="gs://b/it\'s $HOME $(A) $$ `id` \\ *"'
WHAT = ["--name=mine", "--image=registry/commentree:1", "--tpu=v5e", "--topology=4x8"]
WORKLOAD = ["--name=mine", "--cluster=ours", "--zone=z", "--project=p"]


def config(**changes):
  settings = {
    "name": "mine",
    "image": "registry/commentree:1",
    "tpu": "v5e",
    "topology": "4x8",
    "command": ["train", ODD],
  }
  return jobset.JobSetConfig(**{**settings, **changes})


def through_yaml(**changes):
  return yaml.safe_load(jobset.dump(jobset.manifest(config(**changes))))


def closed(properties, required=()):
  return {
    "type": "object",
    "properties": properties,
    "required": list(required),
    "additionalProperties": False,
  }


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
JOBSET_SCHEMA = closed(
  {
    "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
    "kind": {"const": "JobSet"},
    "metadata": closed(
      {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": TEXTS,
        "annotations": TEXTS,
      },
      ["name"],
    ),
    "spec": closed(
      {
        "network": closed(
          {
            "enableDNSHostnames": {"type": "boolean"},
            "publishNotReadyAddresses": {"type": "boolean"},
            "subdomain": {"type": "string"},
          }
        ),
        "failurePolicy": closed(
          {
            "maxRestarts": COUNT,
            "rules": {
              "type": "array",
              "items": closed(
                {
                  "name": {"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                  "action": {
                    "enum": [
                      "FailJobSet",
                      "RestartJobSet",
                      "RestartJobSetAndIgnoreMaxRestarts",
                    ]
                  },
                  "onJobFailureReasons": {
                    "items": {
                      "enum": [
                        "BackoffLimitExceeded",
                        "DeadlineExceeded",
                        "FailedIndexes",
                        "MaxFailedIndexesExceeded",
                        "PodFailurePolicy",
                      ]
                    }
                  },
                },
                ["name", "action"],
              ),
            },
          }
        ),
        "replicatedJobs": {
          "type": "array",
          "minItems": 1,
          "items": closed(
            {
              "name": {"type": "string"},
              "replicas": COUNT,
              "template": closed({"spec": {"type": "object"}}, ["spec"]),
            },
            ["name", "template"],
          ),
        },
      },
      ["replicatedJobs"],
    ),
  },
  ["apiVersion", "kind", "metadata", "spec"],
)

VARIANTS = [
  {},
  {"num_slices": 4},
  {"spot": True, "queue": "ours", "namespace": "team", "service_account": "trainer"},
  {"env": {"A": "1"}, "secret_env": {"KEY": ("secret", "key.in-it")}},
  {"tpu": "v5p", "topology": "4x4x8", "num_slices": 2},
  {"tpu": "tpu7x", "topology": "2x2x1"},
  {"tpu": "v6e", "topology": "1x1"},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_manifests_fit_the_published_schemas(changes):
  document = through_yaml(**changes)
  jsonschema.Draft202012Validator(JOBSET_SCHEMA).validate(document)
  [replicated] = document["spec"]["replicatedJobs"]
  job = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "mine-slice-0"},
    "spec": replicated["template"]["spec"],
  }
  kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_the_schemas_notice_a_misspelt_field():
  document = through_yaml()
  job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
  job["paralelism"] = 1
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(
      {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": job},
      kubernetes_validate.latest_version(),
      strict=True,
    )


@pytest.mark.parametrize(
  ("tpu", "topology", "label", "hosts", "chips"),
  [
    ("v4", "2x2x4", "tpu-v4-podslice", 4, 4),
    ("v5e", "1x1", "tpu-v5-lite-podslice", 1, 1),
    ("v5e", "16x16", "tpu-v5-lite-podslice", 64, 4),
    ("v5p", "4x4x4", "tpu-v5p-slice", 16, 4),
    ("v6e", "2x4", "tpu-v6e-slice", 2, 4),
    ("tpu7x", "4x4x4", "tpu7x", 16, 4),
  ],
)
def test_a_slice_is_a_job_of_a_pod_for_each_host(tpu, topology, label, hosts, chips):
  document = through_yaml(tpu=tpu, topology=topology)
  job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  assert (job["completions"], job["parallelism"]) == (hosts, hosts)
  assert job["completionMode"] == "Indexed"
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": label,
    "cloud.google.com/gke-tpu-topology": topology,
  }


def test_a_users_mistake_fails_the_jobset_and_all_else_starts_again():
  spec = through_yaml(max_restarts=7)["spec"]
  job = spec["replicatedJobs"][0]["template"]["spec"]
  [rule] = job["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"]["operator"] == "In"
  values = rule["onExitCodes"]["values"]
  assert 2 in values
  assert not {0, 1, 74, 75, 137, 143} & set(values)
  # Any other exit fails the Job for another reason, which restarts all Jobs.
  assert job["backoffLimit"] == 0
  assert spec["failurePolicy"]["maxRestarts"] == 7
  [rule] = spec["failurePolicy"]["rules"]
  assert (rule["action"], rule["onJobFailureReasons"]) == (
    "FailJobSet",
    ["PodFailurePolicy"],
  )
  assert job["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize(
  "command", [["train", "--host_wait_seconds=5"], ["eval", "--model_dir=m"]]
)
def test_hosts_wait_as_long_as_the_user_says(command):
  document = through_yaml(command=command)
  job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
  [container] = job["template"]["spec"]["containers"]
  assert container["command"] == ["commentree", *command]


def environment(**changes):
  document = through_yaml(**changes)
  job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
  return {v["name"]: v for v in job["template"]["spec"]["containers"][0]["env"]}


def test_several_slices_are_told_where_jax_looks():
  env = environment(num_slices=3)
  assert env["MEGASCALE_NUM_SLICES"]["value"] == "3"
  # The first pod of the first Job, in the headless service's domain.
  assert env["MEGASCALE_COORDINATOR_ADDRESS"]["value"] == "mine-slice-0-0.mine"
  assert env["MEGASCALE_SLICE_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == (
    "metadata.labels['jobset.sigs.k8s.io/job-index']"
  )
  assert not any(name.startswith("MEGASCALE") for name in environment())


def test_a_secret_is_named_not_written():
  env = environment(secret_env={"KEY": ("secret", "part")})
  assert env["KEY"]["valueFrom"] == {"secretKeyRef": {"name": "secret", "key": "part"}}
  assert "value" not in env["KEY"]


def test_commands_and_variables_reach_every_pod_as_they_are(cloud, capfd):
  flags = [*WHAT, "--num_slices=2", "--env=A=$(B) it's", "--namespace=team"]
  assert main.main(["launch", "jobset", "apply", *flags, "--", "train", ODD]) == 0
  kubectl = ["kubectl", "--namespace=team"]
  assert cloud.calls() == [
    [*kubectl, "delete", "secret", "mine-hosts", "--ignore-not-found"],
    [*kubectl, *CREATE_SECRET],
    [*kubectl, "apply", "--filename=-"],
  ]
  lines = (cloud.folder / "containers.jsonl").read_text().splitlines()
  pods = [json.loads(line) for line in lines]
  assert [(pod["slice"], pod["host"]) for pod in pods] == [
    (s, h) for s in range(2) for h in range(8)
  ]
  expected = ["commentree", "train", ODD, "--host_wait_seconds=900"]
  assert all(pod["argv"] == expected for pod in pods)
  assert all(pod["env"]["A"] == "$(B) it's" for pod in pods)


CREATE_SECRET = [
  *("create", "secret", "generic", "mine-hosts"),
  "--from-file=secret=/dev/stdin",
]


def test_hosts_of_a_jobset_share_a_secret_that_is_in_no_manifest(cloud, capfd):
  flags = [*WHAT, "--", "train"]
  assert main.main(["launch", "jobset", "apply", *flags]) == 0
  first = (cloud.folder / "secret").read_text()
  assert len(first) == 64
  assert main.main(["launch", "jobset", "apply", *flags]) == 0
  assert (cloud.folder / "secret").read_text() != first
  assert main.main(["launch", "jobset", "write", *flags]) == 0
  everything = json.dumps(cloud.calls()) + "".join(capfd.readouterr())
  assert first not in everything + (cloud.folder / "jobset.json").read_text()
  source = environment()["COMMENTREE_HOST_SECRET"]["valueFrom"]
  assert source == {
    "secretKeyRef": {"name": "mine-hosts", "key": "secret", "optional": True}
  }
  # One host has none to know, and a user's own secret is left alone.
  assert not config(tpu="v6e", topology="1x1").makes_host_secret
  own = config(secret_env={"COMMENTREE_HOST_SECRET": ("ours", "key")})
  assert not own.makes_host_secret


def test_a_port_of_the_users_is_opened_in_the_pods():
  def ports(**env):
    job = through_yaml(env=env)["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    return [port["containerPort"] for port in container["ports"]]

  assert 8482 in ports()
  assert 9000 in ports(JAX_COORDINATOR_PORT="9000")
  with pytest.raises(UserError, match=r"--env=JAX_COORDINATOR_PORT=x: must be a port"):
    ports(JAX_COORDINATOR_PORT="x")


@pytest.mark.parametrize("verb", ["apply", "status", "delete", "logs"])
def test_a_dry_run_of_a_jobset_survives_a_shell(verb, cloud, capsys):
  argv = ["launch", "jobset", verb]
  argv += [*WHAT, "--dry_run", "--", "train", ODD] if verb == "apply" else [
    "--name=mine", "--dry_run"
  ]  # fmt: skip
  assert main.main(argv) == 0
  assert cloud.calls() == []
  shown = capsys.readouterr().out
  subprocess.run(["bash", "-c", shown], check=True, capture_output=True)
  assert cloud.calls()[0][0] == "kubectl"
  assert any(verb in call for call in cloud.calls()) or verb == "status"
  if verb == "apply":
    assert len((cloud.folder / "secret").read_text().strip()) == 64
    applied = json.loads((cloud.folder / "jobset.json").read_text())
    assert applied == through_yaml()


def in_process(argv):
  """Runs a verb that becomes another program."""
  code = "import sys; from commentree.launch import main; sys.exit(main.main())"
  return subprocess.run([sys.executable, "-c", code, "launch", *argv], check=True)


@pytest.mark.parametrize("target", ["jobset", "xpk"])
def test_logs_are_those_of_one_host(target, cloud):
  in_process([target, "logs", "--name=mine", "--slice=1", "--host=3", "--follow"])
  [call] = cloud.calls()
  assert call[:2] == ["kubectl", "logs"]
  assert call[2] == (
    "--selector=jobset.sigs.k8s.io/jobset-name=mine,"
    "jobset.sigs.k8s.io/job-index=1,batch.kubernetes.io/job-completion-index=3"
  )
  assert "--follow" in call


def containers(cloud):
  lines = (cloud.folder / "containers.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_xpk_is_asked_for_a_workload_that_runs_the_command_as_it_is(cloud, monkeypatch):
  monkeypatch.setenv("SECRET", "s3cr3t ä")
  flags = [*WORKLOAD, "--tpu_type=v5litepod-64", "--num_slices=2", "--image=i"]
  argv = ["launch", "xpk", "create", *flags, "--env=SECRET", "--", "train", ODD]
  assert main.main(argv) == 0
  assert containers(cloud) == [["train", ODD, "--host_wait_seconds=900"]]
  [call] = cloud.calls()
  assert call[1:3] == ["workload", "create"]
  assert {
    "--workload=mine",
    "--cluster=ours",
    "--zone=z",
    "--project=p",
    "--tpu-type=v5litepod-64",
    "--num-slices=2",
    "--docker-image=i",
    "--max-restarts=20",
    "--restart-on-exit-codes=1,74,75",
    "--termination-grace-period-seconds=300",
  } < set(call)
  assert "s3cr3t" not in json.dumps(call)
  env = json.loads((cloud.folder / "env.json").read_text())
  assert env["mode"] == 0o600
  host_secret, own = env["text"].splitlines()
  assert re.fullmatch("COMMENTREE_HOST_SECRET=[0-9a-f]{64}", host_secret)
  assert own == "SECRET=s3cr3t ä"


def test_a_pod_of_xpks_that_is_told_to_end_lets_the_run_save(cloud):
  argv = ["launch", "xpk", "create", *WORKLOAD, "--tpu_type=v6e-8", "--image=i"]

  def preempt():
    deadline = time.monotonic() + 10
    while not (cloud.folder / "waiting").exists() and time.monotonic() < deadline:
      time.sleep(0.05)
    os.kill(int((cloud.folder / "pod.pid").read_text()), signal.SIGTERM)

  thread = threading.Thread(target=preempt)
  thread.start()
  with pytest.raises(UserError, match="exit code 143"):
    xpk.main([*argv[2:], "--", "train", "--wait"])
  thread.join()
  assert (cloud.folder / "saved").exists()


@pytest.mark.parametrize(
  ("verb", "called"),
  [
    ("status", ["workload", "list", "--filter-by-job=^mine$"]),
    ("delete", ["workload", "delete", "--workload=mine"]),
  ],
)
def test_xpk_shows_and_deletes_that_workload_alone(verb, called, cloud):
  assert main.main(["launch", "xpk", verb, *WORKLOAD]) == 0
  where = ["--cluster=ours", "--zone=z", "--project=p"]
  assert cloud.calls() == [["xpk", *called, *where]]


MADE = ["--", "train"]


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (["jobset", "write", *WHAT[:2], "--tpu=v5", "--topology=4x8", *MADE], "--tpu=v5"),
    (["jobset", "write", *WHAT[:3], "--topology=3x3", *MADE], "v5e has 1x1, 2x2"),
    (["jobset", "write", *WHAT[:2], "--tpu=v4", "--topology=4x8", *MADE], "v4 has"),
    (["jobset", "write", "--name=M", *WHAT[1:], *MADE], "--name=M: write up to 40"),
    (["jobset", "write", *WHAT, "--env=KEY", *MADE], "--secret_env=KEY=SECRET/KEY"),
    (["jobset", "write", *WHAT, "--secret_env=KEY=s3cr3t", *MADE], "--secret_env=KEY:"),
    (["jobset", "write", *WHAT, "--num_slices=0", *MADE], "--num_slices=0"),
    (
      ["jobset", "write", *WHAT[:3], "--topology=2x2", "--num_slices=2", *MADE],
      "only slices of several hosts",
    ),
    (["jobset", "write", *WHAT], "there is no command"),
    (
      ["xpk", "create", *WORKLOAD, "--tpu_type=x", "--image=i", "--", "train", "a\nb"],
      "line end",
    ),
  ],
)
def test_a_users_mistake_is_one_line_that_shows_no_secret(argv, said, capsys, cloud):
  assert main.main(["launch", *argv]) == 2
  told = capsys.readouterr().err.strip()
  assert said in told
  assert "\n" not in told
  assert "s3cr3t" not in told
  assert cloud.calls() == []


@pytest.mark.parametrize(
  ("name", "topology", "chips"),
  [("v5e", "8x16", 128), ("v5p", "2x4x4", 32), ("v4", "4x4x12", 192)],
)
def test_topologies_tell_their_chips(name, topology, chips):
  assert tpu_types.count_chips(tpu_types.for_gke(name), topology) == chips


@pytest.mark.parametrize(
  "topology", ["4", "4x4", "8x4x4", "4x4x6", "4x4x0", "64x64x64"]
)
def test_topologies_that_are_not_made_are_refused(topology):
  with pytest.raises(UserError, match=r"--topology="):
    tpu_types.count_chips(tpu_types.for_gke("v5p"), topology)
