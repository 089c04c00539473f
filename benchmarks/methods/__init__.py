"""Steering methods at equal damage: one site, one budget of KL, the same held-out questions."""
