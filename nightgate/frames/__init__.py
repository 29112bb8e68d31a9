"""Data frames from the views: what `nightgate history` and its kin show and `nightgate.history` returns."""
