"""Questions answered by adding to a concept, for models that can: accuracy first, then steering."""
