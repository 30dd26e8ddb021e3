"""What a run amounts to: numbers, a table, a page."""
