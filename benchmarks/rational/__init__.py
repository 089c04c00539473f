"""Rational in-context learning measured: small transformers trained here, predicted as mixtures.

`settings` draws the tasks, `transformer` and `train` make the models (all diversities at once),
`strategies` asks the Bayesian predictors, `measure` fits the law and `draw` shows it.
"""
