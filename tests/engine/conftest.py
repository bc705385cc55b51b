"""What the engine computes with: its own kernels, or PyTorch's operations alone; on a CPU or AISP_TEST_DEVICE."""

from __future__ import annotations

import pytest
from tiny_models import DEVICE

from aisp_ray.engine.cpu import kernels

# what the kernels, a CPU's steps one at a time, or a stand-in for a GPU do
_OF_A_CPU = ("test_kernels", "test_fast_widths", "test_fast_capture", "test_flash", "test_ahead", "test_noise_scale")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if DEVICE != "cpu" and item.path.stem in _OF_A_CPU:
            item.add_marker(pytest.mark.skip(reason=f"shows what a CPU does, not {DEVICE}"))


@pytest.fixture(params=["own kernels", "PyTorch alone"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that use it run twice, the second time as on a machine without a C compiler."""
    if request.param == "PyTorch alone":
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif kernels.load() is None:
        pytest.skip("no C compiler")
