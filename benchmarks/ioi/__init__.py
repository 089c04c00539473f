"""Indirect objects: which states and heads carry them, by patching, by gradients, as a circuit."""
