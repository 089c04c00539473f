"""Data that the tasks use, written for them."""
