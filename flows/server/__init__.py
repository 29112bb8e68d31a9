"""A Prefect server: which one a command uses, who can reach it, and what `doctor` and `status` read from it."""
