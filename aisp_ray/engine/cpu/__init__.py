"""The float32 path on a CPU: products and attention in C."""
