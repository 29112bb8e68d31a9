"""Prefect flows: the nightly run, reconciliation, manual decisions, and all calls to Prefect's API."""
