"""What a run has cost and reached, drawn."""
