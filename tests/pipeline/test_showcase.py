"""One prompt with the best response of each method: soon, then once a minute, and at the end."""

import pytest
from rich.cells import cell_len

from aisp_ray.pipeline.progress import plain
from aisp_ray.pipeline.showcase import Sample, Showcase, Shown, first_whole


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_an_unfinished_response_is_shown_soon_and_a_whole_prompt_a_minute_later():
    at = Clock()
    showcase = Showcase(["aisp", "best_of_n"], at)
    assert showcase.take() is None
    showcase.note("p/0", "Hello?", "best_of_n", Shown("Hi", 0.5, ended=False))
    assert showcase.take() is None
    at.now = 5
    assert showcase.take().best == {"best_of_n": Shown("Hi", 0.5, ended=False)}
    showcase.note("p/0", "Hello?", "best_of_n", Shown("Hi there", 0.7))
    showcase.note("p/1", "Bye?", "aisp", Shown("Bye", 0.1, ended=False))
    showcase.note("p/0", "Hello?", "aisp", Shown("Hi you", 0.9))
    assert showcase.take() is None
    at.now = 66
    sample = showcase.take()
    assert (sample.prompt, list(sample.best)) == ("Hello?", ["aisp", "best_of_n"])
    at.now = 130
    assert showcase.take().prompt == "Bye?"


def test_finished_prompts_are_forgotten():
    showcase = Showcase(["aisp"], Clock())
    for i in range(100):
        showcase.note(f"p/{i}", "?", "aisp", None if i % 2 else Shown("yes", 1.0))
    assert not showcase._open
    showcase = Showcase(["aisp", "best_of_n"], Clock())
    for i in range(3000):
        showcase.note(f"p/{i}", "?", "aisp", Shown("yes", 1.0))
    assert len(showcase._open) == 2000


@pytest.mark.parametrize("width", [80, 60])
def test_a_sample_fits_the_terminal_and_cannot_steer_it(width):
    best = {
        "a_method_with_a_very_long_name_of_its_own": Shown("word " * 300, 1.234),
        "aisp": Shown("\x1b[2Jgone", -0.5, ended=False),
        "misvo": None,
    }
    text = plain(Sample("a question " * 60, best).drawing(), width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "(best so far)" in text
    assert "no response" in text


def test_the_first_prompt_with_all_methods_is_taken_of_rows():
    columns = {
        "ordinal": [1, 0, 1, 0],
        "prompt_id": ["d/1", "d/0", "d/1", "d/0"],
        "prompt": ["one", "zero", "one", "zero"],
        "label": ["aisp", "aisp", "best_of_n", "best_of_n"],
        "status": ["ok", "ok", "ok", "error"],
        "response": ["a1", "a0", "b1", None],
        "reward": [1.0, 2.0, 0.5, None],
    }
    sample = first_whole(columns, ["best_of_n", "aisp"])
    assert sample == Sample("one", {"best_of_n": Shown("b1", 0.5), "aisp": Shown("a1", 1.0)})
    assert first_whole(columns, ["best_of_n", "aisp", "misvo"]) is None
