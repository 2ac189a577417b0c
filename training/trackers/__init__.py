"""Where a run's scalars go besides metrics.jsonl: TensorBoard, W&B, MLflow, others.

`tracker.py` is the Protocol and the names of those that there are; `background.py`
keeps a tracker from stopping or delaying a run; each other file is one tracker, loaded
only when a run names it. Only host 0 has any.
"""
