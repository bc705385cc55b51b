"""What tests of several folders use. The tests that take longest begin first, so that all processes end together."""

import pytest


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ("test_chaos" not in str(item.path), "/ray/" not in str(item.path)))  # stable


@pytest.fixture
def prompts(tmp_path):
    """A function that writes n prompts and returns their path."""
    from tests.plans import write_prompts

    return lambda count: write_prompts(tmp_path / "prompts.jsonl", count)


@pytest.fixture
def here(monkeypatch):
    """Runs take place in this process, without Ray's."""
    from tests.machines import in_this_process

    in_this_process(monkeypatch.setattr)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The rows of aisp on 12 prompts of `write_prompts`, by a run in this process without faults."""
    from aisp_ray.pipeline import run
    from tests.machines import in_this_process
    from tests.plans import make_plan, rows_of, write_prompts

    folder = tmp_path_factory.mktemp("clean")
    clean = {"out": str(folder / "out"), "path": write_prompts(folder / "prompts.jsonl", 12), "methods": ["aisp"]}
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch.setattr)
        assert run(make_plan({**clean, "run": {"chunk_rows": 4}})) == 0
    return rows_of(clean["out"])


@pytest.fixture
def start_driver():
    """A function that starts a `DriverProcess`; what still runs at the end of the test is killed."""
    from tests.driver_process import DriverProcess

    started = []

    def start(settings, address=None):
        started.append(DriverProcess(settings, address))
        return started[-1]

    yield start
    for driver in started:
        if driver.process.poll() is None:
            driver.process.kill()
            driver.process.wait()
