"""The behaviour side: distributions, the manifold M_y they lie on, and what it measures."""
