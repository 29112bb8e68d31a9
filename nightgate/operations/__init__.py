"""Checks, status and reconciliation of an installation, from outside its runs."""
