"""The errors a user of `manifolds` can cause, in one family.

The messages say what happened with the values, why that cannot work, and what to do.
"""


class ManifoldError(ValueError):
    """Data no manifold can be fitted to, a tensor of the wrong width, or a spec not ours."""
