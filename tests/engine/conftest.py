"""What the engine computes with: its own kernels, or PyTorch's operations alone."""

from __future__ import annotations

import pytest

from aisp_ray.engine.cpu import kernels


@pytest.fixture(params=["own kernels", "PyTorch alone"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that use it run twice, the second time as on a machine without a C compiler."""
    if request.param == "PyTorch alone":
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif kernels.load() is None:
        pytest.skip("no C compiler")
