"""The tests that take longest begin first, so that all processes end together."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ("test_chaos" not in str(item.path), "/ray/" not in str(item.path)))  # stable
