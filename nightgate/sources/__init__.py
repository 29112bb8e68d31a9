"""Sources: read rows as Arrow batches from files, data sets and a generator."""
