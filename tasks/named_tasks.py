"""The tasks that a run's settings name.

Those that settings alone make need no SeqIO, which takes seconds to import, nor
TensorFlow; others are sought in SeqIO's registry.
"""

from __future__ import annotations

from fractions import Fraction

from commentree.tasks import settings_tasks
from commentree.tasks.config import mixture_config
from commentree.tasks.data_config import DataConfig
from commentree.tasks.tree_task import MixedTask, TreeTask


def needs_seqio(config: DataConfig) -> bool:
  """Whether what the settings name takes SeqIO: its registry, a mixture or a cache."""
  alone = (mixture_config.GENERATED, mixture_config.FILES)
  return config.use_cached or config.mixture_or_task_name not in alone


def find(config: DataConfig) -> list[MixedTask[TreeTask]]:
  """Returns the tasks of the mixture that the settings name, or the one task.

  Raises:
    UserError: if no such name is known; or a mixture's tasks are not all of
      comment trees, or not of one vocabulary, or predict different things.
  """
  name = config.mixture_or_task_name
  if not needs_seqio(config):
    return [MixedTask(settings_tasks.make(config, name), Fraction(1))]
  from commentree.tasks.seqio_tasks import registration, registry

  registration.register_tasks(config)
  return list(registry.get_parts(name))
