"""Prefect tasks: what the orchestrator manages (names, retries, artifacts) around one library call each."""
