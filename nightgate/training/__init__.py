"""Fine-tuning and scoring in a child process."""
