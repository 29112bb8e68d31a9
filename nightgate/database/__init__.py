"""The metrics database: connections, tables and queries."""
