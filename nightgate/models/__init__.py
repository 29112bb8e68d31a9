"""A finished model on disk."""
