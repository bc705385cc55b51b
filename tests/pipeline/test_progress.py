"""The progress lines say what a person wants to know, tell a stall from slow work, and fit the terminal."""

import io
import json
import logging
import re
import time

import pytest
from rich.cells import cell_len

from aisp_ray.cluster.pool import Pool, PoolCall, PoolSettings, Replica, Sent
from aisp_ray.pipeline.meter import Meter, Status, clock
from aisp_ray.pipeline.progress import Screen, ScreenHandler


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        """What was written, line by line, without control sequences."""
        return re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue()))


def meter_at(clock, **fields):
    meter = Meter(2, clock)
    vars(meter).update(fields)
    return meter


def line_of(meter, pools=None, in_flight=0):
    return meter.status(pools or {}, in_flight).line()


def test_the_line_counts_searches_and_estimates_the_end():
    at = Clock()
    meter = meter_at(at, num_rows_total=40)
    at.now += 30  # models load
    assert "loading models" in line_of(meter, in_flight=4)
    meter.begin()
    for _ in range(40):
        meter.iteration(tokens=5, share=0.25, best=1.5)
    for _ in range(10):
        meter.row(ok=True)
    at.now += 20
    assert line_of(meter, in_flight=4) == (
        "searches 10/40 · 25% · best reward 1.5 · 10 tokens/s · 2 iterations/s · 0:50 gone, about 1:00 left"
    )


def test_one_method_is_counted_in_prompts():
    meter = Meter(1, Clock())
    meter.num_rows_total, meter.num_rows = 1_234_567, 12_345
    assert line_of(meter).startswith("prompts 12345/1234567 ")


def test_nothing_known_is_said_as_unknown():
    meter = meter_at(Clock())
    meter.begin()
    assert line_of(meter) == "searches 0/? · 0:00 gone, ? left"


def test_there_is_no_estimate_before_the_searches_in_flight_had_one_round():
    at = Clock()
    meter = meter_at(at, num_rows_total=16)
    meter.begin()
    at.now += 8
    for _ in range(7):
        meter.iteration(1, 0.125, 0.0)
    assert line_of(meter, in_flight=8).endswith("? left")
    meter.iteration(1, 0.125, 0.0)
    assert line_of(meter, in_flight=8).endswith("about 2:00 left")


def test_rates_are_those_of_the_last_minute():
    at = Clock()
    meter = meter_at(at, num_rows_total=400)
    for second in range(300):
        at.now += 1
        for _ in range(1 if second < 200 else 3):
            meter.iteration(1, 0.01, 0.0)
        rate = meter.rates()[0]
        if second == 199:
            assert abs(rate - 1) < 0.05
    assert abs(rate - 3) < 0.05


def test_rows_of_earlier_runs_are_done_and_cost_no_time():
    at = Clock()
    meter = meter_at(at, num_rows_total=40, num_earlier=20)
    meter.begin()
    at.now += 10
    for _ in range(10):
        meter.iteration(1, 1.0, 0.0)
        meter.row(ok=False)
    line = line_of(meter, in_flight=1)
    assert line.startswith("searches 30/40 · 75%")
    assert "10 error rows" in line
    assert line.endswith("0:10 left")


def stalled_pool(held):
    pool = Pool(PoolSettings("policy"), backend=None)
    replica = Replica("policy-7", None, "ready")
    replica.calls[None] = Sent(PoolCall("rollout", (), 4, "p", held), time.monotonic() - 130)
    pool.replicas.append(replica)
    return pool


def test_a_stall_names_who_holds_what():
    at = Clock()
    meter = meter_at(at)
    empty = {"policy": Pool(PoolSettings("policy"), backend=None)}
    at.now += 120
    assert "nothing finished" not in line_of(meter, empty, in_flight=0)
    assert "nothing finished for 2:00: no actor is ready in policy" in line_of(meter, empty, in_flight=3)

    held = "rollout of shp/test/00000012, iteration 3"
    line = line_of(meter, {"policy": stalled_pool(held)}, in_flight=3)
    assert "2:10 rollout of shp/test/00000012, iteration 3 (policy-7)" in line


def test_a_log_gets_lines_and_a_terminal_a_live_region():
    log = io.StringIO()
    screen = Screen(log, every=15.0)
    screen.show(Status("one"))
    screen.show(Status("two", 0.5, "1:00 gone", ("a fact",), "a stall"))
    assert (log.getvalue(), screen.every) == ("one\ntwo · 50% · a fact · 1:00 gone · a stall\n", 15.0)

    terminal = Terminal()
    screen = Screen(terminal, every=15.0, width=80)
    screen.show(Status("one"))
    screen.show(Status("two"))
    screen.say("stays")
    screen.close()
    assert terminal.getvalue().endswith("\x1b[2K")  # the live lines are gone
    assert "stays" in terminal.lines()
    assert "\x1b[?25l" not in terminal.getvalue()  # a killed process must not leave a terminal without its cursor


@pytest.mark.parametrize("width", [80, 60, 40])
def test_no_line_is_longer_than_the_terminal(width):
    at = Clock()
    meter = meter_at(at, num_rows_total=123_456, num_errors=12)
    meter.begin()
    meter.iteration(123_456_789, 0.5, 1.25)
    at.now += 4000
    held = "rollout of a_dataset_with_a_long_name/validation/00000012, iteration 3"
    pools = {name: stalled_pool(held) for name in ("policy", "reward", "judges.demo_judge", "judges.demo_gold")}
    terminal = Terminal()
    screen = Screen(terminal, width=width)
    screen.say("rows go to /a/long/path" + "/of/many/folders" * 8)
    screen.show(meter.status(pools, 8))
    screen.say("warning: one word after another, " * 9)
    screen.close()
    shown = terminal.lines()
    assert max(map(cell_len, shown)) <= width
    text = "\n".join(shown)
    for part in ("searches 0/123456", "best reward 1.25", "gone", "nothing finished"):
        assert part in text


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(variable, monkeypatch):
    for name, value in {"TERM": "xterm-256color", **variable}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    screen = Screen(terminal, width=80)
    screen.say("error: red")
    screen.show(Status("one", 0.5, "1:00 gone", ("a fact",), "a stall"))
    screen.close()
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3|4|9)\d", terminal.getvalue())


def test_json_logs_carry_prompt_and_iteration():
    stream = io.StringIO()
    screen = Screen(stream, as_json=True)
    logger = logging.getLogger("aisp_ray.test_json_logs")
    logger.addHandler(ScreenHandler(screen))
    logger.setLevel(logging.INFO)
    logger.info("iteration told", extra={"prompt_id": "shp/test/1", "iteration": 3, "method": "aisp"})
    record = json.loads(stream.getvalue())
    assert (record["message"], record["prompt_id"], record["iteration"]) == ("iteration told", "shp/test/1", 3)


def test_clock():
    assert [clock(s) for s in (5, 75, 3675)] == ["0:05", "1:15", "1:01:15"]
