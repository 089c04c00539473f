"""What evaluation pipelines cost: plans in Inspect against bare calls and its own provider."""
