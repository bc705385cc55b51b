"""The embedded demo: a generated world, tiny trained models, and prompts. See the README beside this file."""
