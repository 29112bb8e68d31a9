"""What the project claims, as commands that anyone can run."""
