"""Classification metrics computed from predictions."""
