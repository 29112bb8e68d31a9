"""The life of a run in SQL."""
