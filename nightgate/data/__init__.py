"""Data: reads the rows of a source and turns them into an immutable snapshot."""
