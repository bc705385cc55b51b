"""aisp-ray: find the best response a frozen language model can give under a reward model."""

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "BestResponse",
    "BestResponses",
    "EvaluationRun",
    "__version__",
    "abest_responses",
    "best_responses",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    """The library's calls, imported at first use: `import aisp_ray` stays light."""
    if name in __all__:
        from aisp_ray.commands import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
