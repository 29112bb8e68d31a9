"""Questions to past nights."""
