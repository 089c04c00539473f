"""Probes measured: over blocks and data sets, as monitors with a promise, and by the clock."""
