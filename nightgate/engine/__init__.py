"""The model and its optimiser step."""
