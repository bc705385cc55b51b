"""The judge against an OpenAI-compatible server of our own."""

import base64
import json
import math
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from aisp_ray.cluster.failures import sort_error
from aisp_ray.errors import error_text
from aisp_ray.rewards._points import read_points, text_of
from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.judge import Judge
from aisp_ray.types import Message, Prompt

PROMPT = Prompt("p/1", 0, "d", "Is it?", meta={"preferred": "fine 6"})


class Endpoint(BaseHTTPRequestHandler):
    """Gives each answer the number in it; speaks unclearly about "mumble"; prefers place A by one point."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if self.server.failures and (status := self.server.failures.pop()):
            return self.reply(status, {"error": {"message": self.server.message}})
        text = body["messages"][-1]["content"]
        points = [
            int(re.search(r"\d+", part)[0]) for part in re.findall(r">>>\n([^<]*\d[^<]*)\n<<< END OF ANSWER", text)
        ]
        if len(points) == 2:
            points[0] = min(10, points[0] + 1)
        content = "Well..." if "mumble" in text else " ".join(map(str, points)) + "\nBecause."
        content = content if self.server.content is None else self.server.content
        return self.reply(200, {
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": self.server.finish,
                         "message": {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        })  # fmt: skip

    def reply(self, status, values):
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "5")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.bodies, server.failures = [], []
    server.message, server.content, server.finish = "not now", None, "stop"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def judge(server, **settings):
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return Judge(model="small-judge", base_url=address, api_key_env=None, **settings).load("cpu")


def test_responses_are_rated_and_identical_ones_once(server):
    scorer = judge(server, seed=7)
    scores = scorer.score([ScoreRequest(PROMPT, ("good 8", "bad 2", "good 8"))])[0]
    assert scores.rewards == (8.0, 2.0, 8.0)
    assert len(server.bodies) == 2
    assert {body["seed"] for body in server.bodies} == {7}
    assert {body["temperature"] for body in server.bodies} == {0.0}
    assert {body["model"] for body in server.bodies} == {"small-judge"}


def test_a_comparison_is_asked_in_both_orders_and_averaged(server):
    scorer = judge(server, compare_with="preferred")
    scores = scorer.score([ScoreRequest(PROMPT, ("good 8", "same 6"))])[0]
    assert scores.rewards == (2.0, 0.0)  # the point for place A cancels
    assert len(server.bodies) == 4
    wins = judge(server, compare_with="preferred", reward="win")
    assert wins.score([ScoreRequest(PROMPT, ("good 8", "same 6", "bad 2"))])[0].rewards == (1.0, 0.5, 0.0)


def test_one_order_is_drawn_by_the_seed_and_repeats(server):
    def orders(seed):
        server.bodies.clear()
        scorer = judge(server, compare_with="preferred", both_orders=False, seed=seed, concurrency=1)
        scorer.score([ScoreRequest(PROMPT, tuple(f"answer {k}" for k in range(1, 10)))])
        texts = [body["messages"][-1]["content"] for body in server.bodies]
        return [text.index("answer") < text.index("fine") for text in texts]

    assert orders(0) == orders(0)
    assert set(orders(0)) == {True, False}
    assert orders(0) != orders(1)


def test_unreadable_judgements_are_errors_and_counted_apart(server):
    scorer = judge(server)
    scores = scorer.score([ScoreRequest(PROMPT, ("good 8", "mumble 3", "none 0"))])[0]
    assert scores.rewards[0] == 8.0
    assert all(map(math.isnan, scores.rewards[1:]))
    assert scores.errors[1] == "prompt p/1, particle 1: the judge's answer holds no points: 'Well...'"
    stats = scorer.stats()
    assert (stats["judge_calls"], stats["judge_parse_failures"], stats["judge_failed_calls"]) == (3, 2, 0)


def test_requests_are_retried_with_waits(server):
    server.failures = [500, 429, 503]
    scorer = judge(server, concurrency=1)
    assert scorer.score([ScoreRequest(PROMPT, ("good 8",))])[0].rewards == (8.0,)
    assert len(server.bodies) == 4
    assert scorer.stats()["judge_retries"] == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_endpoint_that_stays_away_is_said_and_no_unknown_reward(server, status):
    server.failures = [status] * 4
    scorer = judge(server, retries=1, concurrency=2)
    with pytest.raises(Exception, match="not now") as caught:
        scorer.score([ScoreRequest(PROMPT, tuple(f"good {k}" for k in range(1, 9)))])
    assert sort_error(caught.value).kind == "service"
    assert len(server.bodies) <= 8  # what had not begun was not asked


def test_a_judge_that_cannot_be_reached_is_said(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(Exception, match="Connection error") as caught:
        judge(server, retries=0).score([ScoreRequest(PROMPT, ("good 8",))])
    assert sort_error(caught.value).kind == "service"


def test_what_a_busy_endpoint_has_answered_is_not_asked_again(server):
    scorer = judge(server, retries=0, concurrency=1)
    server.failures = [429, None, None]
    with pytest.raises(Exception, match="not now"):
        scorer.score([ScoreRequest(PROMPT, ("good 8", "bad 2", "same 6"))])
    assert len(server.bodies) == 3
    again = ScoreRequest(PROMPT, ("good 8", "bad 2", "same 6"))
    assert scorer.score([again])[0].rewards == (8.0, 2.0, 6.0)
    assert len(server.bodies) == 4
    scorer.score([again])
    assert len(server.bodies) == 7  # answers are kept once


def test_an_endpoint_that_refuses_is_an_error_of_each_response(server):
    server.failures = [400] * 2
    scores = judge(server, retries=1).score([ScoreRequest(PROMPT, ("good 8", "bad 2"))])[0]
    assert all(map(math.isnan, scores.rewards))
    assert "BadRequestError" in scores.errors[0]
    assert len(server.bodies) == 2  # a wrong request is not sent again


def test_the_ledger_knows_tokens_and_money(server):
    scorer = judge(server, prompt_price=2.0, completion_price=10.0)
    scorer.score([ScoreRequest(PROMPT, ("good 8", "bad 2"))])
    stats = scorer.stats()
    assert (stats["judge_prompt_tokens"], stats["judge_completion_tokens"]) == (200, 20)
    assert stats["judge_cost_usd"] == pytest.approx(200 * 2e-6 + 20 * 10e-6)
    assert math.isnan(judge(server, prompt_price=2.0).stats()["judge_cost_usd"])


def test_a_prompt_without_the_other_answer_has_no_reward(server):
    scores = judge(server, compare_with="rejected").score([ScoreRequest(PROMPT, ("good 8",))])[0]
    assert math.isnan(scores.rewards[0])
    assert 'meta["rejected"]' in scores.errors[0]
    assert server.bodies == []


def test_the_judge_reads_the_dialogue_with_its_roles(server):
    turns = (
        Message("system", "Be kind."),
        Message("user", "Hi."),
        Message("assistant", "Hello."),
        Message("user", "?"),
    )
    shown = judge(server).describe(Prompt("p", 0, "d", "?", turns))
    assert "system: Be kind.\n\nuser: Hi.\n\nassistant: Hello.\n\nuser: ?" in shown
    assert "<<< ANSWER >>>\n<response>\n<<< END OF ANSWER >>>" in shown


POINTS = [
    ("<think>Okay, the user wants 1 rating.\n</think>\n\n9\nClear.", 1, (9.0,)),
    ("1. Helpfulness: good\n\nOverall: 8", 1, (8.0,)),
    ("A gives 3 reasons and B gives 2.\n8 7", 2, (8.0, 7.0)),
    ("-8", 1, None),
    ("8 out of 10", 1, (8.0,)),
    ("Rating (1-10): 8", 1, (8.0,)),
    ("A: 8\nB: 7", 2, (8.0, 7.0)),
    ('```json\n{"rating": 8}\n```', 1, (8.0,)),
    ("<think>I would give 8", 1, None),
    ("8 7\nbecause 3", 2, (8.0, 7.0)),
    ("\n 8/10, 7.5/10\n", 2, (8.0, 7.5)),
    ("A: 10, B: 1", 2, (10.0, 1.0)),
    ("7", 1, (7.0,)),
    ("8 7 6", 2, None),
    ("8", 2, None),
    ("11 3", 2, None),
    ("0 3", 2, None),
    ("", 1, None),
    ("none", 1, None),
    ("**8**", 1, (8.0,)),
    ("8/10\nWould be 10/10 if shorter.", 1, (8.0,)),
    ("It is 8/10, would be 10/10 if shorter.", 1, None),
    ("Rating: 7\nAfter all, final rating: 9", 1, (9.0,)),
    ("I would rate this answer an 8.", 1, (8.0,)),
    ("Score: **7/10**", 1, (7.0,)),
    ("8 - a good answer", 1, (8.0,)),
    ("8, because it helps", 1, (8.0,)),
    ("3 reasons speak for it", 1, None),
    ("Rating: between 7 and 8", 1, None),
    ("Rating: 7-8", 1, None),
    ("Rating: 7 or 8", 1, None),
    ("On a scale from 1 to 10, I rate it 6.", 1, (6.0,)),
    ("Overall 15", 1, None),
    ("7.5", 1, (7.5,)),
    ('{"rating": 9, "reason": "it is', 1, (9.0,)),
    ('{"reason": "2 of 3", "rating": "4"}', 1, (4.0,)),
    ('{"rating_a": 3, "rating_b": 9, "reason": ""}', 2, (3.0, 9.0)),
    ('{"A": 3, "B": 9}', 2, (3.0, 9.0)),
    ('{"ratings": [3, 4]}', 2, (3.0, 4.0)),
    ("Answer A: 8/10\nAnswer B: 6/10\nA is better.", 2, (8.0, 6.0)),
    ("**A**: 8\n**B**: 7", 2, (8.0, 7.0)),
    ("Rating for A: 5\nRating for B: 6", 2, (5.0, 6.0)),
    ("thinking 3\n</think>\n8", 1, (8.0,)),
    ("Well...", 1, None),
    ("10 points", 1, (10.0,)),
    ("8 and 7", 2, (8.0, 7.0)),
    ("10/10", 1, (10.0,)),
    ('{"rating": true}', 1, None),
    ("Rating: −8", 1, None),
    ("Rating - 8", 1, (8.0,)),
    ("Step 1: read. Step 2: judge.", 1, None),
    ("Final answer: 42", 1, None),
    ("The rating is 7 points.", 1, (7.0,)),
    ('```\n{"score": 7.5}\n```\nI hope this helps.', 1, (7.5,)),
    ('{"A": {"x": 1}, "rating": 2}', 1, (2.0,)),
    ("[[8]]", 1, (8.0,)),
    ("Assistant A: 8, Assistant B: 7", 2, (8.0, 7.0)),
    ("9\n\nIf it were shorter: 10/10", 1, (9.0,)),
    ("8\n<think>", 1, None),
]


@pytest.mark.parametrize(("text", "count", "points"), POINTS)
def test_points_are_what_the_answer_clearly_states(text, count, points):
    assert read_points(text, count) == points


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "thinking", "thinking": "3?"}, {"type": "text", "text": "9"}], "9"),
        ([{"type": "text", "text": "9\n"}, {"type": "text", "text": "Clear."}], "9\nClear."),
        ([{"type": "output_text", "text": "9"}, {"type": "image_url", "image_url": {}}], "9"),
        (["9"], "9"),
        ([], ""),
        (None, ""),
        (9, ""),
    ],
)
def test_content_in_parts_is_its_text(content, text):
    assert text_of(content) == text


def test_an_answer_in_parts_is_read(server):
    server.content = [{"type": "thinking", "thinking": "4?"}, {"type": "text", "text": "9"}]
    assert judge(server).score([ScoreRequest(PROMPT, ("good 8",))])[0].rewards == (9.0,)


def test_a_schema_asks_for_ratings_and_json_is_read(server):
    server.content = '{"rating": 7, "reason": "2 of 3 points"}'
    assert judge(server).score([ScoreRequest(PROMPT, ("good 8",))])[0].rewards == (7.0,)
    asked = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert asked["required"] == ["rating", "reason"]
    assert "JSON" in server.bodies[0]["messages"][0]["content"]
    server.content = '{"rating_a": 9, "rating_b": 4, "reason": ""}'
    assert judge(server, compare_with="preferred").score([ScoreRequest(PROMPT, ("good 8",))])[0].rewards == (0.0,)


@pytest.mark.parametrize("refusal", ["response_format json_schema is not supported", "unknown field: guided_json"])
def test_an_endpoint_without_schemas_is_asked_for_text(server, refusal):
    server.failures, server.message = [400], refusal
    scorer = judge(server, concurrency=1)
    assert scorer.score([ScoreRequest(PROMPT, ("good 8", "bad 2"))])[0].rewards == (8.0, 2.0)
    assert ["response_format" in body for body in server.bodies] == [True, False, False]
    assert "on the first line" in server.bodies[-1]["messages"][0]["content"]
    assert scorer.stats()["judge_failed_calls"] == 0


def test_own_instructions_and_structured_false_send_no_schema(server):
    for settings in ({"instructions": "Give a number."}, {"structured": False}):
        judge(server, **settings).score([ScoreRequest(PROMPT, ("good 8",))])
    assert not any("response_format" in body for body in server.bodies)


def test_an_answer_that_was_cut_off_says_so(server):
    server.content, server.finish = "<think>I would say 8, but", "length"
    scores = judge(server, max_tokens=7).score([ScoreRequest(PROMPT, ("good 8",))])[0]
    assert math.isnan(scores.rewards[0])
    assert "holds no points (cut off at max_tokens=7)" in scores.errors[0]


def test_the_key_is_in_no_error_text(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    server.failures, server.message = [400], "bad header Authorization: Bearer sk-very-secret"
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    scorer = Judge(model="m", base_url=address, api_key_env="JUDGE_KEY").load("cpu")
    error = scorer.score([ScoreRequest(PROMPT, ("good 8",))])[0].errors[0]
    assert "Bearer ***" in error
    assert "secret" not in error


def test_settings_are_checked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY" in Judge(model="m").check()[0]
    assert Judge(model="m", api_key_env=None).check() == []
    with pytest.raises(ValueError, match="set compare_with"):
        Judge(model="m", reward="win")


@pytest.mark.parametrize(
    ("user", "password"), [("me", "hunter2-long"), ("a%40b", "p%2Fw-long"), ("", "only-a-password")]
)
def test_what_stands_for_a_user_in_an_address_is_never_shown(server, monkeypatch, user, password):
    sent = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    monkeypatch.setenv("MY_JUDGE", "plainly-no-pattern")
    address = f"http://{user}:{password}@127.0.0.1:{server.server_address[1]}/v1"
    server.failures, server.message = [400], f"you sent Basic {sent} of {unquote(password)}, not plainly-no-pattern"
    scorer = Judge(model="m", base_url=address, api_key_env="MY_JUDGE", structured=False).load("cpu")
    error = scorer.score([ScoreRequest(PROMPT, ("good",))])[0].errors[0]
    assert "you sent Basic ***" in error
    shown = error_text(f"{error} {server.message}")  # anywhere else in this process, too
    assert not [secret for secret in (sent, unquote(password), "plainly-no-pattern") if secret in shown]
