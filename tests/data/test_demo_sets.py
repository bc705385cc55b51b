import pytest

from aisp_ray import config
from aisp_ray.data.select import DropReport
from aisp_ray.data.stream import rows_locally

COUNTS = {"demo": 256, "demo_hh": 256, "demo_tuning": 96}


def prompts(name):
    spec = config.build(config.read_choice("data", name), "data")
    report = DropReport()
    assert spec.check() == []
    return list(rows_locally(spec, None, report)), report


@pytest.mark.parametrize("name", COUNTS)
def test_the_embedded_prompts_are_all_usable(name):
    found, report = prompts(name)
    assert len(found) == COUNTS[name]
    assert report.num_errors == 0
    assert not report.dropped
    assert not report.rules
    assert found[0].prompt_id.startswith(f"{name}/")


def test_prompts_for_choosing_settings_are_in_no_evaluation():
    texts = [{prompt.messages[-1].content for prompt in prompts(name)[0]} for name in COUNTS]
    assert not texts[2] & (texts[0] | texts[1])


def test_a_third_of_the_dialogues_have_two_turns():
    lengths = [len(prompt.messages) for prompt in prompts("demo_hh")[0]]
    assert set(lengths) == {1, 3}
    assert 0.2 < lengths.count(3) / len(lengths) < 0.45
