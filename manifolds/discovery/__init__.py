"""Structure without labels: order and topology (`recover`), dimension, groups of dictionary atoms.

Arrays in, frozen results out, each of which says what was found and how sure it is.
"""
