"""The command line: what is accepted, and the one sentence for what is not."""

import io
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from aisp_ray import config
from aisp_ray.commands import eval as cli

ROOT = Path(__file__).parent.parent


def plan(*words):
    return cli.make_plan(cli.read_command(list(words))[1])


def wrong(capsys, *words):
    code = cli.main(list(words))
    captured = capsys.readouterr()
    assert code == 2
    lines = captured.err.strip().split("\n")
    assert len(lines) == 1, captured.err
    return lines[0]


def test_alone_it_is_the_demo():
    made = plan()
    assert list(made.methods) == ["best_of_n", "best_of_n_tuned", "noise_only", "aisp"]
    assert made.policy.model == "demo:policy"
    assert set(made.judges) == {"demo_judge", "demo_gold"}


def test_overrides_reach_their_fields():
    made = plan("method=[aisp]", "method.aisp.sigma=0.25", "seed=7", "policy.actors=[1,3]", "run.in_flight=5")
    assert made.methods["aisp"].sigma == 0.25
    assert (made.seed, made.policy.actors, made.run.in_flight) == (7, (1, 3), 5)


def test_an_override_of_all_methods_reaches_each():
    made = plan("method=[aisp,best_of_n]", "method.n=4", "method.kappa=2")
    assert [m.num_samples for m in made.methods.values()] == [8, 8]


@pytest.mark.parametrize("text", ["Grüße →", "你好", "e\u0301"])
def test_letters_are_read_in_an_ascii_locale(capsys, text):
    word = f"policy.system={text}".encode().decode("ascii", "surrogateescape")  # as Python reads it there
    assert cli.main(["print_config=true", "policy=demo", word]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["policy"]["system"] == text


@pytest.mark.parametrize("word", ["policy.system=\udcff", "policy.system=a\ud800", "out=\udce2\udc82", "\ud800=1"])
def test_an_argument_that_is_not_utf_8_is_refused(capsys, word):
    assert "is not UTF-8" in wrong(capsys, word)


@pytest.mark.parametrize(
    ("closed", "word", "code"),
    [(">&-", "print_config=true", 0), ("2>&-", "limit=x", 2), ("<&- >&- 2>&-", "print_config=true", 0)],
)
def test_closed_streams_change_no_exit_code(closed, word, code):
    call = f"from aisp_ray.commands import eval; raise SystemExit(eval.main(['{word}']))"
    ended = subprocess.run(f'"{sys.executable}" -c "{call}" {closed}', shell=True, capture_output=True, cwd=ROOT)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (code, False)


@pytest.mark.parametrize("value", ['"\\ud800"', '["ok", "a\\udc00"]', '{"\\udfff": 1}'])
def test_half_a_surrogate_pair_in_a_setting_is_refused(value):
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        config.load_yaml(f"system: {value}")


def test_texts_are_taken_as_typed():
    made = plan("data=shp", "data.path=a #1: b.jsonl")
    assert made.data.path == "a #1: b.jsonl"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["methods=aisp"], ['Did you mean "method"']),
        (["method=aips"], ['Did you mean "aisp"']),
        (["polcy.dtype=float32"], ['Did you mean "policy"']),
        (["method=aisp", "method.aisp.sigm=1"], ['Did you mean "sigma"']),
        (["method=aisp", "method.aisp.sigma=big"], ["method.aisp.sigma", "a number"]),
        (["seed=1.5"], ["seed", "a whole number"]),
        (['policy.stop_strings=[""]'], ["policy: stop_strings holds an empty text"]),
        (["policy.actors=[0,0]"], ["policy: actors is [0, 0]", "[min, max]"]),
        (["policy.actors=[2,1]"], ["policy: actors is [2, 1]", "min at most max"]),
        (["reward.num_gpus=-1"], ["reward: num_gpus is -1.0"]),
        (["policy.num_gpus=1.5"], ["policy: num_gpus is 1.5", "a whole number"]),
        (["judges=[demo_judge]", "judges.demo_judge.num_cpus=-1"], ["judges.demo_judge: num_cpus is -1.0"]),
        (["policy.threads=0"], ["policy: threads is 0", "at least 1"]),
        (
            ["judges=[callable]", "judges.callable.target=math:no"],
            ["judges.callable.target: "],
        ),
        (["judges=[deberta]", "judges.deberta.model=./no"], ["judges.deberta.model=./no: there is no config.json"]),
        (["judges=[judge_win]", "judges.judge_win.api_key_env=NO_SUCH_KEY"], ["judges.judge_win.api_key_env=null"]),
        (["run.infra_retries=-1"], ["run: infra_retries is -1", "at least 0"]),
        (["run.ready_timeout_seconds=-1"], ["run: ready_timeout_seconds is -1.0", "above 0"]),
        (["run.starvation_timeout_seconds=0"], ["run: starvation_timeout_seconds is 0.0", "above 0"]),
        (["seed=99999999999999999999"], ["seed=99999999999999999999", "64 bits"]),
        (["--seed=3"], ["seed=3"]),
        (["--seed", "3"], ["seed="]),
        (["seed"], ["key=value"]),
        (["seed=1", "seed=2"], ["twice"]),
        (["dry_run=maybe"], ["true or false"]),
        (["method=[]"], ["at least one"]),
        (["policy=[demo,hf]"], ["policy"]),
        (["method=aisp", "method.best_of_n.n=4"], ["not among the chosen"]),
        (["method=aisp", "method.aisp.alpha=2"], ["alpha is 2"]),
        (["method=[aisp,best_of_n]", "method.aisp.n=4"], ["unequal budgets in samples", "allow_unequal_budgets"]),
        (["experiment=nothing"], ["experiment"]),
        (["limit=0"], ["limit"]),
        (["policy.model=/no/such/folder"], ["config.json"]),
        (["policy.model.foo=1"], ["policy.model is 'demo:policy' and has no keys"]),
        (["method=aisp", "method.aisp.sigma.x=1"], ["method.aisp.sigma", "has no keys"]),
        (["policy.dtype.foo=1"], ["policy.dtype", "has no keys"]),
        (["allow_unequal_budgets=maybe"], ["allow_unequal_budgets='maybe'", "true or false"]),
        (["report=nope"], ["report='nope'", "true or false"]),
        (["baseline=best_of_m"], ["baseline=best_of_m", 'Did you mean "best_of_n"']),
        (
            ["method=[aisp,noise_only]", "baseline=best_of_n"],
            ["it is not among the methods", "Known: aisp, noise_only"],
        ),
        (
            ["method=args_paper"],
            ["method.args_paper.max_new_tokens=128 is above policy.max_new_tokens=64; lower it, or raise"],
        ),
        (["method=args", "policy.max_new_tokens=16"], ["method.args.max_new_tokens=64 is above", "=16"]),
    ],
)
def test_what_is_wrong_is_one_sentence(capsys, words, parts):
    line = wrong(capsys, *words)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("limit=010", 10),
        ("limit=1_000", 1000),
        ("data.columns={prompt:question}", {"prompt": "question"}),
        ("data.columns={prompt: question}", {"prompt": "question"}),
        ("policy.template_options={enable_thinking:false, depth: 2}", {"enable_thinking": False, "depth": 2}),
        ("policy.template_options={a: {b:1}}", {"a": {"b": 1}}),
        ("policy.stop_strings=[User:]", ("User:",)),
        ("policy.stop_strings=[###, 'it''s', \"\\n\\n\", \"a, b\"]", ("###", "it's", "\n\n", "a, b")),
        ("policy.stop_strings=[1,2]", ("1", "2")),
        ("policy.stop_strings=[]", ()),
        ("policy.stop_strings=null", None),
        ("run.address=no", "no"),
    ],
)
def test_a_typed_value_is_what_it_looks_like(word, value):
    key, _, text = word.partition("=")
    hints = {"limit": int | None, "data.columns": dict[str, str], "policy.template_options": dict[str, object]}
    hints |= {"policy.stop_strings": tuple[str, ...] | None, "run.address": str | None}
    assert config.convert(config.parse_as(text, hints[key]), hints[key], key) == value


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("limit=1:30", "limit='1:30': it must be a whole number or null"),
        ("limit=0x10", "limit='0x10'"),
        ("report=yes", "report='yes': it must be true or false, and this is a text"),
        ("policy.actors=[1,a]", "policy.actors='a': it must be a whole number, and this is a text"),
    ],
)
def test_a_value_of_another_type_is_refused_in_a_sentence_that_holds(capsys, word, part):
    assert part in wrong(capsys, word)


def test_a_list_of_texts_in_a_file_may_hold_a_number_only_in_quotes():
    with pytest.raises(config.ConfigError, match=r"x=1: it must be a text, and this is a whole number"):
        config.convert([1, 2], tuple[str, ...], "x")
    with pytest.raises(config.ConfigError, match=r"x=1: it must be a list of texts such as \[a, b\]"):
        config.convert(1, tuple[str, ...], "x")


def test_a_key_twice_in_a_file_is_refused():
    with pytest.raises(yaml.YAMLError, match="'a' is there twice"):
        config.load_yaml("a: 1\nb: 2\na: 3\n")


def test_nobody_reading_the_output_is_no_failure():
    command = f"{sys.executable} jobs/eval.py --help"
    for shell in (f"{command} | head -1; exit ${{PIPESTATUS[0]}}", f"LC_ALL=C PYTHONIOENCODING=ascii {command}"):
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_report_is_written_although_nobody_reads_the_table(monkeypatch):
    written = []
    monkeypatch.setattr("aisp_ray.report.write.read_report", lambda out, baseline: SimpleNamespace(page=out))
    monkeypatch.setattr("aisp_ray.report.write.report_text", lambda report: "a table")
    monkeypatch.setattr("aisp_ray.report.write.write_report", lambda report: written.append(report.page))

    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):  # `for_a_reader` takes it
        cli.show_report("here", "best_of_n", write=True)
    assert written == ["here"]


def test_an_exit_of_somebody_elses_code_is_never_a_success(tmp_path, capsys, monkeypatch):
    (tmp_path / "leaver.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli.config, "choices", lambda group: __import__("leaver"))
    assert cli.main(["limit=1"]) == 1
    assert "called exit(0)" in capsys.readouterr().err


def test_a_bad_command_fails_within_two_seconds():
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # noqa: E731  processor time: load does not count
    before = used()
    done = subprocess.run([sys.executable, "jobs/eval.py", "sed=1"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert 'Did you mean "seed"' in done.stderr
    assert used() - before < 2


def test_no_secret_of_the_command_line_is_shown(capsys):
    words = ["data=prompts", "data.path=https://me:pw@host/x.jsonl", "reward=judge_openai"]
    words += ["reward.extra={api_key: abc}", "out=s3://KEY:SE/CR@bucket/x"]
    assert cli.main(["print_config=true", *words]) == 0
    shown = capsys.readouterr().out
    assert "https://***@host/x.jsonl" in shown
    assert not re.search(r"pw|abc|SE/CR", shown)
    cli.main(["limit=none", *words])
    assert not re.search(r"pw|abc|SE/CR", "".join(capsys.readouterr()))


def test_print_config_is_yaml_that_names_every_choice(capsys):
    assert cli.main(["print_config=true", "method=aisp"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["policy"]["model"] == "demo:policy"
    assert "aisp" in shown["method"]


def test_help_names_groups_choices_keys_and_defaults(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("best_of_n", "ultrarm_13b", "shp", "dry_run", "allow_unequal_budgets", "experiment="):
        assert word in text
    assert text.count("\n") < 220
    assert cli.main(["method=[aisp,misvo]", "run=default", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("method.aisp.key", "reward_temperature", "0.999", "method.misvo.key", "in_flight"):
        assert word in text
    assert "ultrarm_13b" not in text
    for cls in (type(plan().methods["aisp"]), type(plan().policy)):
        assert all(config.comments(cls).values()), f"{cls.__name__} has a key without a meaning"


def test_the_default_baseline_may_be_missing_and_a_typed_one_is_kept(capsys):
    for words in (["method=aisp"], ["method=[aisp,noise_only]", "baseline=aisp"]):
        assert cli.main([*words, "print_config=true"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["baseline"] == ("aisp" if len(words) > 1 else "best_of_n")


def test_placement_does_not_change_the_fingerprint_and_numbers_do():
    base = plan("method=aisp").config_hash
    assert plan("method=aisp", "policy.actors=[1,4]", "run.in_flight=3").config_hash == base
    assert plan("method=aisp", "method.aisp.sigma=0.3").config_hash != base
    assert plan("method=aisp", "seed=1").config_hash != base


def test_conversions_keep_to_the_type():
    assert config.convert(1, float, "x") == 1.0
    assert config.convert([1, 2], tuple[int, int], "x") == (1, 2)
    assert config.convert(None, int | None, "x") is None
    with pytest.raises(config.ConfigError, match="takes 2 values"):
        config.convert([1], tuple[int, int], "x")
    with pytest.raises(config.ConfigError, match="true or false"):
        config.convert(1, bool, "x")


def test_values_come_from_the_environment_by_interpolation(monkeypatch):
    monkeypatch.setenv("AISP_TEST_SCRATCH", "/scratch/me")
    made = plan("out=${oc.env:AISP_TEST_SCRATCH}/run", "run.chunk_rows=7")
    assert made.out == "/scratch/me/run"
    with pytest.raises(config.ConfigError, match=r"out=.*AISP_TEST_MISSING"):
        plan("out=${oc.env:AISP_TEST_MISSING}/run")
    assert config.convert("a price of ${x}", str, "policy.system") == "a price of ${x}"  # a text, not a resolver


def test_a_choice_may_be_a_file_of_ones_own(tmp_path, monkeypatch, capsys):
    """Of any group; its keys are set by the file's name, and modules beside it are found."""
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    (tmp_path / "own_folder").mkdir()
    own = tmp_path / "own_folder"
    code = "from aisp_ray.methods.best_of_n import BestOfN\n\n\nclass Mine(BestOfN):\n    pass\n"
    (own / "a_module_beside_its_yaml.py").write_text(code)
    (own / "mine.yaml").write_text("# my method\n_target_: a_module_beside_its_yaml.Mine\nn: 4\nkappa: 2\n")
    (own / "quick.yaml").write_text(
        "_target_: aisp_ray.policy.causal_lm.CausalLM\nmodel: demo:policy\nmax_new_tokens: 8\n"
    )
    (own / "plainly.yml").write_text("_target_: aisp_ray.rewards.callable.CallableReward\ntarget: builtins:len\n")
    words = [f"method=[{own}/mine.yaml]", "method.mine.n=3", f"policy={own}/quick.yaml", f"reward={own}/plainly.yml"]
    made = plan(*words, "baseline=mine")
    assert type(made.methods["mine"]).__name__ == "Mine"
    assert (made.methods["mine"].n, made.policy.max_new_tokens, made.reward.target) == (3, 8, "builtins:len")
    assert cli.main([f"method={own}/mine.yaml", "--help"]) == 0
    assert "method.mine.key of mine: my method" in capsys.readouterr().out
    assert "there is no such file" in wrong(capsys, f"method={own}/none.yaml")
    (own / "aisp.yaml").write_text("_target_: aisp_ray.methods.aisp.Aisp\n")
    assert "aisp is chosen already" in wrong(capsys, f"method=[aisp,{own}/aisp.yaml]")


def test_a_module_that_raises_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    (tmp_path / "a_broken_module.py").write_text("raise RuntimeError('no licence')\n")
    (tmp_path / "broken.yaml").write_text("_target_: a_broken_module.Mine\n")
    assert "cannot be imported: RuntimeError: no licence" in wrong(capsys, f"method={tmp_path}/broken.yaml")


def test_the_current_folder_is_importable_for_console_scripts(tmp_path):
    """`aisp-eval` starts in a folder of its own, which is all that Python would look in."""
    (tmp_path / "my_method.py").write_text("from aisp_ray.methods.best_of_n import BestOfN as Mine\n")
    (tmp_path / "my_method.yaml").write_text("_target_: my_method.Mine\n")
    script = "import sys; from aisp_ray.commands.eval import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "method=./my_method.yaml", "print_config=true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "_target_: my_method.Mine" in done.stdout


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("words", [["--help"], ["policy=hf", "--help"], ["limit=3", "dry_run=true"]])
def test_help_and_plans_fit_the_terminal(width, words, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("aisp_ray.pipeline.preflight", lambda plan, *say: [])

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    assert cli.main([*words, *([] if "--help" in words else [f"out={tmp_path}/out"])]) == 0
    for line in sys.stdout.getvalue().split("\n"):
        assert len(line) <= width or len(line.split()) == 1, line  # a path is not broken
