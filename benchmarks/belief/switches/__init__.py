"""A belief over a switch of the evidence: texts, predictors, measures and pictures."""
