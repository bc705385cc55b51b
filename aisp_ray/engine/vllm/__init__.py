"""vLLM as an engine: its schedulers, kernels and parallelism; our control law and our named draws at its LM head."""
