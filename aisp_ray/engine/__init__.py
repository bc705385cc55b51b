"""Rollouts of a causal language model under a control law. Runs without Ray."""
