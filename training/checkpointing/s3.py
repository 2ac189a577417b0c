"""Arrays in `s3://`: TensorStore can write there, but Orbax knows `gs://` alone."""

from __future__ import annotations

import os
from typing import Any

from commentree import compat

_PREFIX = "s3://"


def teach_orbax() -> None:
  """Lets Orbax write and read arrays in `s3://`; further calls do nothing."""
  compat.let_orbax_use(_PREFIX, kvstore_spec)


def kvstore_spec(path: str) -> dict[str, Any]:
  """Returns TensorStore's; region and endpoint as the environment says, as s3fs."""
  bucket, _, key = path.removeprefix(_PREFIX).partition("/")
  spec = {"driver": "s3", "bucket": bucket, "path": key}
  region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
  endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
  if region:
    spec["aws_region"] = region
  if endpoint:
    spec["endpoint"] = endpoint
  return spec
