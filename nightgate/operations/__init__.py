"""What looks at the installation from outside."""
