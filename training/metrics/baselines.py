"""What a model's loss is compared with, worked out once in a run's life and kept.

The unigram and the bags of words know the training data: how often each token is a
target there, and how much to make of a comment's words and of its thread's. Both are
kept in a run's folder, for later evaluations.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping

import flax.struct
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from commentree.training import partitioning
from commentree.training.checkpointing import storage
from commentree.training.cluster.agreement import HostMax
from commentree.training.config import PartitioningConfig
from commentree.training.data_input import HostBatch
from commentree.training.metrics import bags_of_words
from commentree.training.metrics.unigram import Unigram

FILE = "baselines.npz"
_ATTEMPTS = 3
_COUNTS, _WEIGHTS = "target_counts", "bag_weights"

Counts = Mapping[str, np.ndarray]
"""How often each id is a target in training data, by dataset."""


@dataclasses.dataclass(frozen=True)
class Baseline:
  """What the baselines know of a dataset.

  Attributes:
    counts: how often each id is a target in its training data. [V]
    bag_weights: of the bags of words, `[4, 3]` as `bags_of_words.BAGS`; None without.
  """

  counts: np.ndarray
  bag_weights: np.ndarray | None = None

  def placed(self, mesh: Mesh, *, with_bags: bool) -> Placed:
    """Returns it as an evaluation takes it, on all devices."""
    sharding = partitioning.replicated(mesh)
    weights = self.bag_weights if with_bags else None
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape),
      Placed(
        Unigram.of_counts(self.counts),
        None if weights is None else np.asarray(weights, np.float32),
      ),
    )


@flax.struct.dataclass
class Placed:
  """A baseline on the devices.

  Attributes:
    unigram: frequencies of the targets.
    bag_weights: `[4, 3]`, or None.
  """

  unigram: Unigram
  bag_weights: jax.Array | np.ndarray | None


Baselines = Mapping[str, Baseline]
"""By dataset."""


def load_or_make(
  model_dir: epath.Path,
  mesh: Mesh,
  make: Callable[[], Baselines],
  *,
  with_bags: bool,
  writes: bool,
  say: Callable[[str], None] = storage.print_line,
) -> Baselines:
  """Returns what a run's folder holds, or makes and keeps it there.

  Args:
    model_dir: the run's folder, whose settings are known to be those of this run.
    mesh: the mesh of all processes, which all call this.
    make: works the baselines out; all processes do, or none.
    with_bags: whether weights of bags are wanted.
    writes: whether this process is the one that writes.
    say: tells the user a line.

  Raises:
    StorageError: if they cannot be written.
  """
  found = load(model_dir, mesh)
  has_bags = all(each.bag_weights is not None for each in found.values())
  if found and (has_bags or not with_bags):
    return found
  made = make()
  if writes and made:
    arrays = {}
    for name, each in made.items():
      arrays[f"{_COUNTS}/{name}"] = each.counts
      if each.bag_weights is not None:
        arrays[f"{_WEIGHTS}/{name}"] = each.bag_weights
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    storage.retried(
      f"{model_dir / FILE} cannot be written",
      lambda: storage.write_bytes(model_dir / FILE, stream.getvalue()),
      _ATTEMPTS,
      say,
    )
  return made


def make(
  counts: Counts,
  batches: Mapping[str, Iterable[HostBatch]],
  mesh: Mesh,
  partitioning_config: PartitioningConfig,
) -> Baselines:
  """Works the baselines out; all processes take part.

  Args:
    counts: how often each id is a target, by dataset.
    batches: of the datasets for which to fit bags of words, this process's share of
      batches of training data.
    mesh: the mesh.
    partitioning_config: the rules.
  """
  fitter = bags_of_words.Fitter(mesh, partitioning_config)
  return {
    name: Baseline(each, fitter(each, batches[name]) if name in batches else None)
    for name, each in counts.items()
  }


def load(
  model_dir: epath.Path, mesh: Mesh, say: Callable[[str], None] | None = None
) -> Baselines:
  """Returns what a run's folder holds, if all processes read the same there; else none.

  Processes with other baselines than the rest would compile another program, and wait
  for the rest for ever.

  Args:
    model_dir: the run's folder.
    mesh: the mesh of all processes, which all call this.
    say: tells the user a line, if some process reads them and another does not.
  """
  try:
    data = (model_dir / FILE).read_bytes()
    found = _parse(data)
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
    data, found = b"", {}
  checksum = zlib.crc32(data) >> 1  # an int32
  some, missing, highest, lowest = HostMax(mesh)(
    bool(found), not found, checksum, -checksum
  )
  if not missing and highest == -lowest:
    return found
  if some and say is not None:
    say(
      f"{model_dir / FILE}: hosts do not all read the same there: evaluated without"
      " baselines"
    )
  return {}


def _parse(data: bytes) -> dict[str, Baseline]:
  """Raises ValueError, KeyError or BadZipFile if the data are damaged."""
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    arrays = {name: file[name] for name in file.files}
  return {
    dataset: Baseline(counts, arrays.get(f"{_WEIGHTS}/{dataset}"))
    for kind, _, dataset, counts in ((*n.partition("/"), a) for n, a in arrays.items())
    if kind == _COUNTS
  }
