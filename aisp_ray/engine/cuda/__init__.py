"""What only a GPU runs: recorded steps."""
