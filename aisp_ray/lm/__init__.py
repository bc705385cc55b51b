"""What the engine and neural reward models share of a language model."""
