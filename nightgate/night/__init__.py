"""One night, step by step."""
