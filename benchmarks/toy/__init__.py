"""Small transformers trained or made here, in which the truth is known: what methods must find."""
