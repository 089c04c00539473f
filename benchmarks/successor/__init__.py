"""Successor heads: which heads increment days, months, letters and numbers, and by what feature."""
