"""One small cluster for all tests that need Ray: a head here, and nodes that a test may add and take away."""

import pytest


def started(start):
    """What `start` starts; a busy machine may take longer than Ray's 30 seconds."""
    for _ in range(2):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


@pytest.fixture(scope="session")
def cluster():
    from aisp_ray.cluster.session import quiet_environment

    quiet_environment()
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():  # another module's session
        ray.shutdown()
    options = {"num_cpus": 4, "object_store_memory": 100 << 20, "include_dashboard": False}
    # a killed node refuses connections at once; three such answers and it counts as dead
    options["_system_config"] = {"health_check_period_ms": 1000, "health_check_initial_delay_ms": 1000}
    options["_system_config"] |= {"health_check_failure_threshold": 3}
    cluster = started(lambda: Cluster(initialize_head=True, head_node_args=options))
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
