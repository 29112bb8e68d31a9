"""Source rows to an immutable snapshot."""
