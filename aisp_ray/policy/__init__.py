"""A causal language model as a policy: checkpoint, template, stop rules, engine. Runs without Ray."""
