"""Belief dynamics measured: evidence in context and steering, in nats of log-odds.

`data` and `collect` ask a model; `holdout` scores predictions that were made without the data;
`sentiment`, `persona` and `steering` are the experiments, `draw` their pictures.
"""
