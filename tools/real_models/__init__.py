"""How the small reward heads in `aisp_ray/demo/heads/` were trained, and what docs/real_models.md measures."""
