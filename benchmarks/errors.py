"""The error a user of the benchmarks can cause."""


class BenchmarkError(ValueError):
    """A task, a result or a request that cannot be run, read or compared."""
