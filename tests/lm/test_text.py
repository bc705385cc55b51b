"""Chat templates that want parts get parts; what would lose the text, or a tokenizer that does not fit, is refused."""

import pytest
from small_models_of_lm import tokenizer_with

from aisp_ray.errors import DataError
from aisp_ray.lm.text import open_chat, require_fitting_tokenizer, unread
from aisp_ray.policy._render import Renderer
from aisp_ray.policy.causal_lm import CausalLM
from aisp_ray.rewards._templates import make_renderer
from aisp_ray.types import Message, Prompt

OPEN = "{% for m in messages %}<{{ m['role'] }}>"
CLOSE = "</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
PARTS = {
    "looped": OPEN
    + "{% for c in m['content'] %}{% if c['type']=='text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    + CLOSE,
    "first": OPEN + "{{ m['content'][0]['text'] }}" + CLOSE,
    "joined": OPEN + "{{ m['content'] | map(attribute='text') | join('') }}" + CLOSE,
    "either": OPEN
    + "{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0].text }}{% endif %}"
    + CLOSE,
}
LOSES = {
    "fixed": OPEN + "Hello." + CLOSE,
    "other key": OPEN + "{{ m['text'] }}" + CLOSE,
    "first letters": OPEN + "{{ m['content'][:3] }}" + CLOSE,
}
DIALOGUE = Prompt(
    "p", 0, "d", "", (Message("user", "Is it?"), Message("assistant", "What?"), Message("user", "An egg."))
)


@pytest.mark.parametrize("name", PARTS)
def test_no_text_is_lost_whatever_form_the_template_wants(name):
    tokenizer = tokenizer_with(PARTS[name])
    assert open_chat(tokenizer, "it", answers=True).in_parts == (name != "either")
    head = "<user>Is it?</><assistant>What?</><user>An egg.</><assistant>"
    assert Renderer(tokenizer).text(DIALOGUE) == head
    assert make_renderer("chat", tokenizer).render(DIALOGUE, ("No.", "")) == (head, [f"{head}No.</>", f"{head}</>"])


@pytest.mark.parametrize("name", LOSES)
def test_a_template_that_loses_the_text_is_refused(name):
    with pytest.raises(ValueError, match=r"policy\.template=chat does not write a turn's text"):
        Renderer(tokenizer_with(LOSES[name]))
    with pytest.raises(ValueError, match="does not write a question and its answer"):
        make_renderer("chat", tokenizer_with(LOSES[name]))


def test_a_template_that_drops_only_answers_is_refused_for_rewards():
    tokenizer = tokenizer_with("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    assert Renderer(tokenizer).text(Prompt("p", 0, "d", "Hi")) == "Hi"
    with pytest.raises(ValueError, match="a question and its answer"):
        make_renderer("chat", tokenizer)


@pytest.mark.parametrize("broken", ["{% for m in messages %}\n{{ m.content }", "{{ messages | }}", "{% endfor %}"])
def test_a_syntax_error_is_refused_at_start_with_its_line(broken, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(broken)
    with pytest.raises(ValueError, match=r"own\.jinja has a syntax error in line \d"):
        Renderer(tokenizer_with(None), str(path))
    with pytest.raises(ValueError, match="syntax error in line"):
        make_renderer("chat", tokenizer_with(broken))
    (said,) = CausalLM(model="demo:policy", template=str(path)).check()  # before anything loads
    assert said.startswith(f"policy.template={path} has a syntax error in line ")


LOOP = "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"


@pytest.mark.parametrize("text", ["{% generation %}{{ messages[0].content }}{% endgeneration %}", LOOP])
def test_what_transformers_adds_to_jinja_is_no_syntax_error(text, tmp_path):
    (tmp_path / "own.jinja").write_text(text)
    assert CausalLM(model="demo:policy", template=str(tmp_path / "own.jinja")).check() == []


def test_a_template_file_that_is_no_text_is_said_before_anything_loads(tmp_path):
    (tmp_path / "own.jinja").write_bytes(b"\xff\xfe\x00")
    (said,) = CausalLM(model="demo:policy", template=str(tmp_path / "own.jinja")).check()
    assert "own.jinja cannot be read: " in said


def test_a_mark_at_the_start_of_a_template_file_enters_no_prompt(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_bytes(b"\xef\xbb\xbf" + (OPEN + "{{ m['content'] }}" + CLOSE).encode())
    assert Renderer(tokenizer_with(None), str(path)).text(Prompt("p", 0, "d", "Hi")) == "<user>Hi</><assistant>"


def test_a_template_with_rules_of_its_own_is_asked_per_dialogue():
    ruled = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + OPEN
    tokenizer = tokenizer_with(ruled + "{{ m.content }}" + CLOSE)
    assert "Be kind." in Renderer(tokenizer, system="Be kind.").text(Prompt("p", 0, "d", "Hi"))
    with pytest.raises(DataError, match="no system"):
        Renderer(tokenizer).text(Prompt("p", 0, "d", "Hi"))


def test_a_tokenizer_larger_than_the_embedding_is_refused():
    tokenizer = tokenizer_with(None)
    size = len(tokenizer)
    require_fitting_tokenizer(tokenizer, size, "it")
    with pytest.raises(ValueError, match=rf"has {size} tokens, the model's embedding {size - 9}, so .*\.\.\."):
        require_fitting_tokenizer(tokenizer, size - 9, "it")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    require_fitting_tokenizer(tokenizer, size, "it")  # as Gemma-3's: no text holds it by itself
    (index,) = tokenizer("<image>", add_special_tokens=False)["input_ids"]
    assert f"token {index}, for which" in unread([1, index], size)
    assert unread([1, size - 1], size) is None
    tokenizer.add_tokens(["zebra"])
    with pytest.raises(ValueError, match="'zebra' cannot be read"):
        require_fitting_tokenizer(tokenizer, size, "it")


@pytest.mark.parametrize(
    "lost", ["{{ messages[0].role }}", "{% for m in messages %}{{ m.text }}{% endfor %}", "Hello."]
)
def test_a_template_file_that_loses_the_prompt_is_refused_before_anything_loads(lost, tmp_path):
    (tmp_path / "own.jinja").write_text(lost)
    (said,) = CausalLM(model="demo:policy", template=str(tmp_path / "own.jinja")).check()
    assert "own.jinja does not write a turn's text" in said


@pytest.mark.parametrize(
    "kept",
    [
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content[0].text }}{% endfor %}",
        "{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}",
    ],
)
def test_what_only_a_tokenizer_can_tell_is_left_to_the_load(kept, tmp_path):
    (tmp_path / "own.jinja").write_text(kept)
    assert CausalLM(model="demo:policy", template=str(tmp_path / "own.jinja")).check() == []
