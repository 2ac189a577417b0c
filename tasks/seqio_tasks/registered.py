r"""Import to have the embedded tasks registered, as SeqIO's tools expect of a module.

python -m seqio.scripts.inspect_tasks_main --tasks=commentree_generated \
      --module_import=commentree.tasks.seqio_tasks.registered
"""

from commentree.tasks.seqio_tasks import registry

registry.add_generated_task()
