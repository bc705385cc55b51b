"""A run from prompts to Parquet. `run` carries a plan out, `preflight` says what can never work."""

from aisp_ray.pipeline.run import preflight, run

__all__ = ["preflight", "run"]
