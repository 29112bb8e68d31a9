"""Prefect flows: the night as it reads, and what asks Prefect's API."""
