"""The trainer: mesh, state, optimizers, step, checkpoints, evaluation and reports.

`train.py` is the story; each mechanism has a file of its own. Nothing here imports
`commentree.tasks` or gin: data arrives through `data_input.TrainBatches`, settings as
the dataclasses of `config.py`, the model as `models.interface.Model`.
"""
