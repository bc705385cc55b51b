"""Data sets to train on, from the rows and particles of an evaluation."""
