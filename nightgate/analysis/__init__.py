"""Analyses of past nights: comparisons of versions, replays under other policies, power, and seed studies."""
