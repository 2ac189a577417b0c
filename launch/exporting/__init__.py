"""A model's functions as files that run without this package.

`functions` says what each computes, `artifact` writes the folder, `runner` is the
program that lies in it.
"""
