"""Texts that leave the process."""

import sys

import pytest

from aisp_ray.data.prompts import Prompts
from aisp_ray.errors import (
    RedactedStream,
    encodable,
    error_text,
    is_sentence,
    redacted,
    redacted_values,
    refuse,
    visible,
)
from aisp_ray.rng import prompt_key


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("out=s3://KEY:SECRET@bucket/x is away", "out=s3://***@bucket/x is away"),
        ("https://user:PW@host/v1 and http://token@other", "https://***@host/v1 and http://***@other"),
        ("mail me@example.org, see https://host/a@b", "mail me@example.org, see https://host/a@b"),
        ("Authorization: Bearer sk-abcdef123456", "Authorization: Bearer ***"),
        ("s3://KEY:SE/CR+ET@bucket/x and hdfs://u:p@ss@host:9000/y", "s3://***@bucket/x and hdfs://***@host:9000/y"),
        ("http://host:8000/v1/a@b http://host:80", "http://host:8000/v1/a@b http://host:80"),
        ("abfs://c/x?sig=a%2Fb&sv=1&access_key=Zz#top", "abfs://c/x?sig=***&sv=1&access_key=***#top"),
        ("{'Authorization': 'Basic dXNlcjpwdw==', 'a': 1}", "{'Authorization': 'Basic ***', 'a': 1}"),
        ('api_key="0123456789abcdef", n=2', 'api_key="***", n=2'),
        ("Incorrect key: sk-proj-0123456789abcdefghij.", "Incorrect key: ***."),
        ("max_new_tokens=128 api_key_env=OPENAI_API_KEY", "max_new_tokens=128 api_key_env=OPENAI_API_KEY"),
    ],
)
def test_secrets_are_redacted(text, shown, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "sk-abcdef123456")
    monkeypatch.setenv("SHORT_TOKEN", "a")  # would be in every text
    assert redacted(text) == shown


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800", "good é 😀"])
def test_every_text_can_be_encoded(text):
    assert encodable(text).encode()
    assert (encodable(text) == text) == text.startswith("good")


def test_a_long_error_is_cut_and_says_so():
    assert len(error_text("x" * 5_000_000)) < 9000
    assert error_text("x" * 5_000_000).endswith("characters more]")


def test_control_characters_are_shown_and_not_obeyed():
    assert visible("\x1b]0;title\x07 \x1b[2J\r\x9b1m a\n\tb") == "\\x1b]0;title\\x07 \\x1b[2J\\x0d\\x9b1m a\n\tb"


def test_a_secret_is_known_by_the_name_of_its_key():
    given = {
        "reward": {"api_key": "abc", "api_key_env": "OPENAI_API_KEY", "extra": {"headers": {"Authorization": "x y"}}},
        "data": {"path": "https://me:pw@host/x", "keep": ["a", "s3://k:s@b"], "max_prompt_tokens": 5},
        "policy": {"chat_options": {"bos_token": "<s>", "token": ""}, "stop_tokens": ["<end>"]},
    }
    assert redacted_values(given) == {
        "reward": {"api_key": "***", "api_key_env": "OPENAI_API_KEY", "extra": {"headers": {"Authorization": "***"}}},
        "data": {"path": "https://***@host/x", "keep": ["a", "s3://***@b"], "max_prompt_tokens": 5},
        "policy": {"chat_options": {"bos_token": "<s>", "token": ""}, "stop_tokens": ["<end>"]},
    }
    assert redacted_values(redacted_values(given)) == redacted_values(given)


def test_a_stream_redacts_and_is_otherwise_the_stream(capsys):
    stream = RedactedStream(sys.stdout)
    print("rows", "s3://k:s@b/rows", file=stream)
    stream.writelines(["http://t@h\n", "plain\n"])
    assert capsys.readouterr().out == "rows s3://***@b/rows\nhttp://***@h\nplain\n"
    assert stream.isatty() == sys.stdout.isatty()
    assert stream.encoding == sys.stdout.encoding


def test_a_sentence_of_this_package_needs_no_place():
    with pytest.raises(ValueError, match="format is") as ours:
        Prompts(path="x", format="tsv")
    assert is_sentence(ours.value)
    with pytest.raises(ValueError, match="codec can't encode") as by_a_call:  # in this package, by a library
        prompt_key(0, "\ud800")
    assert not is_sentence(by_a_call.value)
    assert not is_sentence(ValueError("never raised"))
    with pytest.raises(ValueError, match="mine") as mine:
        raise ValueError("mine")
    assert not is_sentence(mine.value)


def test_an_error_fits_a_terminal_and_is_one_line_elsewhere(monkeypatch, capsys):
    problem = f"method=x: there is no such choice. Known: {', '.join(['best_of_n'] * 20)}"
    refuse([problem])
    assert capsys.readouterr().err == f"error: {problem}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    refuse([problem])
    shown = capsys.readouterr().err
    assert max(map(len, shown.split("\n"))) <= 60
    assert shown.replace("\n    ", " ") == f"error: {problem}\n"
