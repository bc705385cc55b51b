"""The progress line says what a person wants to know, and tells a stall from slow work."""

import io
import json
import logging
import time

from aisp_ray.cluster.pool import Pool, PoolCall, PoolSettings, Replica
from aisp_ray.pipeline.progress import Meter, Screen, ScreenHandler, clock


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def meter_at(clock, **fields):
    meter = Meter(2, clock)
    vars(meter).update(fields)
    return meter


def test_the_line_counts_prompts_over_methods_and_estimates_the_end():
    at = Clock()
    meter = meter_at(at, num_rows_total=40)
    for _ in range(40):
        meter.iteration(tokens=5, share=0.25, best=1.5)
    for _ in range(10):
        meter.row(ok=True)
    at.now += 20
    line = meter.line({}, in_flight=4)
    assert line == "prompts 5/20 · 2 iterations/s · 10 tokens/s · best reward 1.5 · 0:20 gone, 1:00 left"


def test_many_prompts_are_counted_in_full():
    meter = meter_at(Clock(), num_rows_total=2_469_134, num_rows=24_691)
    assert meter.line({}, 0).startswith("prompts 12345.5/1234567 ")


def test_nothing_known_is_said_as_unknown():
    assert (
        meter_at(Clock()).line({}, 0) == "prompts 0/? · 0 iterations/s · 0 tokens/s · best reward - · 0:00 gone, ? left"
    )


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
    at.now += 10
    for _ in range(10):
        meter.iteration(1, 1.0, 0.0)
        meter.row(ok=False)
    line = meter.line({}, 1)
    assert line.startswith("prompts 15/20")
    assert "10 error rows" in line
    assert line.endswith("0:10 left")


def test_a_stall_names_who_holds_what():
    at = Clock()
    meter = meter_at(at)
    pool = Pool(PoolSettings("policy"), backend=None)
    at.now += 120
    assert "nothing finished" not in meter.line({"policy": pool}, in_flight=0)
    assert "nothing finished for 2:00: no actor is ready in policy" in meter.line({"policy": pool}, in_flight=3)

    replica = Replica("policy-7", None, "ready")
    held = "rollout of shp/test/00000012, iteration 3"
    replica.calls[None] = PoolCall("rollout", (), 4, "p", held, time.monotonic() - 130)
    pool.replicas.append(replica)
    assert "2:10 rollout of shp/test/00000012, iteration 3 (policy-7)" in meter.line({"policy": pool}, in_flight=3)


def test_a_log_gets_lines_and_a_terminal_one_live_line():
    log = io.StringIO()
    screen = Screen(log, every=15.0)
    screen.show("one")
    screen.show("two")
    assert (log.getvalue(), screen.every) == ("one\ntwo\n", 15.0)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    screen = Screen(terminal, every=15.0)
    screen.show("one")
    screen.show("two")
    screen.say("stays")
    assert terminal.getvalue() == "one\r\x1b[2Ktwo\r\x1b[2Kstays\n"


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
