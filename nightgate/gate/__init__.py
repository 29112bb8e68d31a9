"""The gate: whether a candidate may replace the champion, as a pure function of evidence and policy."""
