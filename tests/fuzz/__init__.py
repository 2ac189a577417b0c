"""Fuzzing of everything that reads what others wrote.

`surfaces` lists what is fuzzed, `engine` tries inputs, and `make fuzz` runs
`python -m commentree.tests.fuzz`. A failure is an exception other than a `UserError`,
an input that takes over `engine.MAX_SECONDS`, or a kept comment that is not counted
exactly once.
"""
