"""Registers the tasks that a run's settings name with SeqIO."""

from __future__ import annotations

from commentree.tasks import settings_tasks
from commentree.tasks.data_config import DataConfig
from commentree.tasks.seqio_tasks import registry


def register_tasks(config: DataConfig) -> None:
  """Makes the settings' own tasks known to SeqIO, beside those already registered."""
  for name in settings_tasks.made(config):
    registry.add_task(settings_tasks.make(config, name))
  if members := config.members():
    rates = {member.name: member.rate for member in members}
    registry.add_mixture(config.mixture_or_task_name, rates)
