"""Arrays in `s3://`: TensorStore can write there, but Orbax knows `gs://` alone."""

from __future__ import annotations

import os
from typing import Any

_PREFIX = "s3://"


def teach_orbax() -> None:
  """Lets Orbax write and read arrays in `s3://`; further calls do nothing."""
  # Imported here, as it takes most of a second that few runs need.
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils

  if getattr(tensorstore_utils, "_knows_s3", False):
    return
  normalize = tensorstore_utils._normalize_path
  gcs_spec = gcs_utils.get_kvstore_for_gcs

  def normalize_path(path: str) -> str:
    return normalize(path).replace("s3:/", _PREFIX)

  def is_in_bucket(directory: str) -> bool:
    return directory.startswith(("gs://", _PREFIX))

  def spec(path: str) -> dict[str, Any]:
    return kvstore_spec(path) if path.startswith(_PREFIX) else gcs_spec(path)

  tensorstore_utils._normalize_path = normalize_path
  tensorstore_utils._use_gcs_driver = is_in_bucket
  gcs_utils.get_kvstore_for_gcs = spec
  tensorstore_utils._knows_s3 = True


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
