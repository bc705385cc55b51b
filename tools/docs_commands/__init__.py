"""The shell commands of the documentation: found, checked and run (`make docs-commands`)."""
