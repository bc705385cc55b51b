"""Prompts: where they are read from, how a row becomes a prompt, and what each rule did. Streamed by Ray Data."""
