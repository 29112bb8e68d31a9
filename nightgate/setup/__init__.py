"""A pipeline before its first night: a file written from data (`init`), and what a night would have (`check`)."""
