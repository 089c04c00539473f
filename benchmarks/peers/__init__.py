"""The same work by other means: the model alone, hand-written hooks, TransformerLens, nnsight.

Written as their own documentation writes it, with what makes them slower left out where there is a
choice. Heavy libraries are imported when a function here is called.
"""
