"""Measures of responses and of whole evaluations, one file each. What cannot be measured is NaN, never 0."""
