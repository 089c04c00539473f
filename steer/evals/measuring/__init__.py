"""What a plan does, measured on the local tasks: choices, texts, free answers, and the report."""
