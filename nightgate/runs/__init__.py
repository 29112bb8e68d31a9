"""Runs in the database: their claim, heartbeat, slots, records and end."""
