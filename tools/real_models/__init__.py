"""How the small reward heads of `aisp_ray/real/` were trained, and the study of docs/results.md on real models."""
