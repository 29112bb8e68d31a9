"""The model registry: numbered versions of each pipeline, its champion and its anchor."""
