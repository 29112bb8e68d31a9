"""Deployments: what is served, when, and the pipeline files that come with the package."""
