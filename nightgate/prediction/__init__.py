"""The champion over rows without labels: what is read, the predictions, and where they go."""
