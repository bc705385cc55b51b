"""What can never be placed is refused in one sentence; what fits is let through."""

import pytest

from aisp_ray.cluster.placement import Node, ask_in_words, cpu_wait, cpus_held, find_problems, most_actors, shortage
from aisp_ray.types import Placement

GPU4 = Node(32, 4, {"aisp-role": "policy"})
HEAD = Node(4, 0)


def asks(**placements):
    return {name: Placement(**values) for name, values in placements.items()}


def problems(nodes, **placements):
    return find_problems(asks(**placements), nodes)


def test_what_fits_is_let_through():
    policy = {"actors": (2, 8), "num_gpus": 2, "label_selector": {"aisp-role": "policy"}}
    assert problems([HEAD, GPU4], policy=policy, reward={"num_gpus": 0}) == []


def test_an_actor_larger_than_any_node_is_refused():
    (text,) = problems([HEAD, GPU4], policy={"num_gpus": 8})
    assert text.startswith("policy: no node can hold one actor, which asks for 8 GPUs (the largest node has 4 GPUs)")
    assert "policy.num_gpus" in text


def test_a_label_that_no_node_has_is_refused():
    (text,) = problems([HEAD, GPU4], policy={"num_gpus": 1, "label_selector": {"aisp-role": "rewards"}})
    assert "on nodes labelled aisp-role=rewards" in text
    assert "policy.label_selector" in text


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [("policy", True), ("!policy", False), ("in(policy, x)", True), ("!in(y, x)", True), ("x", False)],
)
def test_label_selectors_are_those_of_ray(wanted, fits):
    assert (GPU4.fits(Placement(label_selector={"aisp-role": wanted})) > 0) == fits


def test_too_many_actors_at_the_minimum_are_refused():
    (text,) = problems([HEAD, GPU4], policy={"actors": (3, 3), "num_gpus": 2})
    assert text.startswith("policy: only 2 of at least 3 actors can be placed, each asks for 2 GPUs")
    assert "policy.actors" in text


def test_pools_compete_for_gpus():
    gpu = {"actors": (1, 1), "num_gpus": 3}
    (text,) = problems([HEAD, GPU4], policy=gpu, reward=gpu)
    assert "the minimum asks for 6 GPUs (policy 1 x 3, reward 1 x 3)" in text


def test_fractions_share_a_gpu_and_never_span_two():
    assert GPU4.fits(Placement(num_gpus=0.5)) == 8
    assert GPU4.fits(Placement(num_gpus=0.4)) == 8
    assert Node(4, 1).fits(Placement(num_gpus=0.5)) == 2


def test_actors_that_leave_no_cpu_for_ray_data_are_refused():
    cpu = {"actors": (1, 1), "num_cpus": 1.0}
    (text,) = problems([Node(2, 0)], policy=cpu, reward=cpu)
    assert text.startswith("Ray Data would hang: actors take 2 of 2 CPUs (policy 1 x 1, reward 1 x 1)")
    assert text.endswith("lower num_cpus or actors of policy or reward, or add a node with CPUs")
    assert problems([Node(3, 0)], policy=cpu, reward=cpu) == []


def test_who_takes_the_cpus_is_named_and_not_who_has_a_gpu():
    cpu = {"num_cpus": 1.0}
    (text,) = problems([Node(2, 1)], policy={"num_gpus": 1}, reward=cpu, **{"judges.gold": cpu})
    assert text.endswith("need 1 free CPU; lower num_cpus or actors of reward or judges.gold, or add a node with CPUs")
    (text,) = problems([Node(0.5, 1)], policy={"num_gpus": 1})
    assert text.endswith("(none) and reading and writing need 1 free CPU; add a node with CPUs")


def test_gpu_actors_take_no_cpus():
    assert problems([Node(1, 4)], policy={"num_gpus": 1, "num_cpus": 8.0}) == []


def test_node_types_that_an_autoscaler_may_start_count():
    to_come = Node(8, 8, None, copies=2)
    ask = {"actors": (2, 2), "num_gpus": 8, "label_selector": {"aisp-role": "policy"}}
    assert problems([HEAD, to_come], policy=ask) == []
    assert problems([HEAD], policy=ask) != []


def test_cpu_pools_grow_only_as_long_as_a_cpu_stays_free():
    cpu = {"actors": (1, 8), "num_cpus": 1.0}
    assert most_actors(asks(policy=cpu, reward={"actors": (1, 2), "num_cpus": 0.5}), 4) == {"policy": 2, "reward": 2}
    assert most_actors(asks(policy={"actors": (1, 8), "num_gpus": 1}), 1) == {"policy": 8}


def test_who_holds_the_cpus_that_something_waits_for_is_said():
    assert cpu_wait(0.25, "to read the data", total=2, free=0, own=0.5) == (
        "waiting for 0.25 CPU to read the data; 1.5 of 2 are held by others"
    )
    assert cpu_wait(0.25, "to read the data", total=2, free=0.25, own=0) is None  # it waits for something else
    assert cpu_wait(0.5, "to start reward", 2, 0, 2) == "waiting for 0.5 CPU to start reward; this run's actors hold 2"


def test_cpus_that_others_hold_are_warned_of_before_anything_starts():
    both = asks(policy={"num_cpus": 0.5}, reward={"num_cpus": 0.5, "actors": (2, 4)})
    assert cpus_held(both, {"policy": 2, "reward": 1}) == 1.5
    assert shortage(both, 0.25, total=4, free=1.75) is None
    assert shortage(both, 0.25, total=4, free=1.5) == (
        "2.5 of 4 CPUs are held by others: the actors and the reading of the data need 1.75, 1.5 are free, and the run "
        "waits for the rest"
    )
    assert shortage(asks(policy={"num_gpus": 1}), 0.25, total=8, free=0.25) is None


def test_an_ask_in_words():
    assert ask_in_words(Placement(num_gpus=0.5)) == "0.5 GPUs"
    assert ask_in_words(Placement(num_cpus=2)) == "2 CPUs"
    assert ask_in_words(Placement(num_gpus=1)) == "1 GPU"
