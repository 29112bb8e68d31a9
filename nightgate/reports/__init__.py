"""The report of a night: its facts from the database, its sections and charts, and the files it is written as."""
