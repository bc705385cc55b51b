"""Figures: `draw` has the look and the files, `evaluation` and `search` say what is drawn of which."""
