"""The gate: may this candidate replace the champion? A pure function of evidence and policy."""
