"""Small transformers with a known ring, line or torus inside, and what is found of it."""
