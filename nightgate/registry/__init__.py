"""Versions and the champion."""
