"""aisp-ray: find the best response a frozen language model can give under a reward model."""

__version__ = "0.1.0"
