"""Benchmarks: every figure beside its floor, measured in the same run (docs/performance.md).

`python -m bench` runs them all; `python -m bench exec create` runs some.
"""
