"""The errors a user of `probes` can cause, in one family.

The messages say what happened with the values, why that cannot work, and what to do.
"""


class ProbeError(ValueError):
    """Data no probe can be fitted to, an input of the wrong width, or a spec not ours."""
