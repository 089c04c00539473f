"""Digits drawn from normal laws in context: the manifold of what a model believes of them."""
