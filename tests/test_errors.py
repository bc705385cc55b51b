"""Texts that leave the process."""

import pytest

from aisp_ray.errors import encodable, error_text, redacted, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("out=s3://KEY:SECRET@bucket/x is away", "out=s3://***@bucket/x is away"),
        ("https://user:PW@host/v1 and http://token@other", "https://***@host/v1 and http://***@other"),
        ("mail me@example.org, see https://host/a@b", "mail me@example.org, see https://host/a@b"),
        ("Authorization: Bearer sk-abcdef123456", "Authorization: Bearer ***"),
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
