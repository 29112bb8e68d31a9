"""The report of a night: facts from the database, what is said about them, and how it is drawn and written down."""
