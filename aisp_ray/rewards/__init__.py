"""One file a kind of reward model. Runs without Ray."""
