"""The pipeline file as frozen pydantic models: one module for each table, `pipeline` for the whole."""
