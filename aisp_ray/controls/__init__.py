"""What is added to a pre-logit, and how its mean is written down."""
