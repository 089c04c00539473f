"""`helix`: how a model holds the number that it is about to say."""
