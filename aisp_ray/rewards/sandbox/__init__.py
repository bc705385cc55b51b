"""Programs run apart: limits, and no way to files, network or other processes."""
