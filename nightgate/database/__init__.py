"""The metrics database: connections, tables and transactions."""
