"""Choosing a method's settings: searches and sweeps over shared models, measured again on held-out prompts."""
