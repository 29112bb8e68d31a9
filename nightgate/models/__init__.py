"""Versions on disk: their folders, model cards, predictions, and the check that they can be served."""
