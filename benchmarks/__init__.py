"""Declared tasks that put numbers, intervals and controls to what the toolkit claims.

`python -m benchmarks list | run | compare | report`. A task is a frozen value (`task`), run by
`run`, the only writer of results; tables and pictures are made from the written result. Not
imported by steer, probes or manifolds, and not in the wheel.
"""
