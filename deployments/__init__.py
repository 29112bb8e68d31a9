"""Deployments: the catalog, `serve`, `deploy`, the worker, automations, and the package's pipeline files."""
