"""Engine, tables and queries."""
