"""A world model: a small recurrent network that watches a car on a mountain road."""
