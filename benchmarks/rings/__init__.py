"""Steering round rings of concepts: reading them, moving on them, measuring and drawing it."""
