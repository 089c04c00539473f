"""`graph_walk`: geometry that a model builds from a walk in its context alone."""
