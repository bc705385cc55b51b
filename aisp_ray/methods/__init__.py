"""One file a method: a frozen dataclass of its YAML keys, with pure `init`, `ask` and `tell`."""
