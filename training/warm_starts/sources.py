"""Opens files of arrays, telling their kind by what is in them."""

from __future__ import annotations

from etils import epath

from commentree.errors import UserError
from commentree.training.checkpointing import storage
from commentree.training.warm_starts.formats import (
  orbax_arrays,
  safetensors,
  t5x_native,
)
from commentree.training.warm_starts.formats.array_source import ArraySource


def open_source(path: str | epath.Path) -> ArraySource:
  """Opens files, telling their kind by what is in them.

  Args:
    path: a T5X checkpoint of either form, ours among them; or a `.safetensors` file,
      or a folder of such as Hugging Face has them. Local, `gs://` or `s3://`.

  Raises:
    UserError: if it is none of these, or damaged.
  """
  path = storage.as_path(path)
  if not storage.is_remote(path) and not path.exists():
    raise _missing(path)

  if safetensors.is_there(path):
    return safetensors.open_safetensors(path)
  if t5x_native.is_there(path):
    return t5x_native.T5xNative(path)
  if orbax_arrays.is_there(path):
    return orbax_arrays.OrbaxArrays(path)
  if not path.exists():
    raise _missing(path)
  safetensors.refuse_pickles(path)
  raise UserError(
    f"{path} holds no checkpoint that can be read: name a checkpoint_<step> folder of"
    " commentree or T5X, or a folder with model.safetensors"
  )


def _missing(path: epath.Path) -> UserError:
  return UserError(f"{path}: there is no such checkpoint")
