"""Every experiment is built, checked and dry-run as on a cluster that holds the weights."""

import pytest
import yaml

from aisp_ray import config, pipeline
from aisp_ray.commands import eval as cli
from aisp_ray.commands import train_value
from aisp_ray.lm import hub

NAMES = sorted(config.choices("experiment"))
POLICIES = ("llama3_8b", "vicuna_7b", "gemma3_4b")


@pytest.fixture
def _a_cluster_with_the_weights(monkeypatch, tmp_path):
    """The hub answers with a commit, and there are GPUs; nothing has been trained yet."""
    conf = config.conf_folder().resolve()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "conf_folder", lambda: conf)
    monkeypatch.setattr(hub, "look_up", lambda name, *_, **__: f"commit-of-{name}")
    monkeypatch.setattr(pipeline, "preflight", lambda plan, say: [])


def values_of(name):
    return yaml.safe_load((config.conf_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))


def plan_of(name):
    return cli.make_plan(cli.read_command([f"experiment={name}"])[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("_a_cluster_with_the_weights")
def test_an_experiment_is_dry_run(name, capsys):
    assert cli.main([f"experiment={name}", "dry_run=true"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for method in values_of(name)["method"]:
        assert f"  {method}: " in said.out


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_has_its_own_output_and_a_baseline_among_its_methods(name):
    values = values_of(name)
    assert values["out"] == f"outputs/{name}"
    assert values["baseline"] in values["method"]
    assert len(config.choices("experiment")[name]) > 20


@pytest.mark.parametrize("name", [name for name in NAMES if "published" in values_of(name)])
def test_published_figures_name_their_source_and_methods_of_the_experiment(name):
    values = values_of(name)
    published = dict(values["published"])
    assert "Table" in published.pop("source")
    assert set(published) <= set(values["method"])
    assert all(isinstance(figure, float) for line in published.values() for figure in line.values())


def test_the_aisp_comparison_is_complete():
    expected = {f"aisp_{d}_{p}_{r}" for d in ("shp", "hh_rlhf") for p in POLICIES for r in ("ultrarm", "eurus")}
    assert {name for name in NAMES if name.startswith("aisp_")} == expected
    for name in expected:
        plan = plan_of(name)
        aisp, best_of_n = plan.methods["aisp_reimplementation"], plan.methods["best_of_n_reimplementation"]
        assert aisp.num_samples == best_of_n.num_samples == 1024
        assert plan.policy.max_new_tokens == 128
        assert aisp.horizon is None  # all positions
        assert plan.data.sample == 1000
        assert next(iter(plan.judges.values())).model != plan.reward.model


def test_misvos_runs_have_its_budget_length_and_prompts():
    for name in NAMES:
        if not name.startswith("misvo_"):
            continue
        plan = plan_of(name)
        size = 32 if plan.policy.model.endswith(("Instruct", "phi-4")) and "LFM" not in plan.policy.model else 16
        assert {(method.n, method.kappa) for method in plan.methods.values()} == {(size, size)}, name
        assert plan.policy.max_new_tokens == 512
        assert {method.horizon for method in plan.methods.values()} == {None}
        assert (plan.limit, plan.data.sample) in ((120, None), (None, 500), (None, 100), (None, 15))
        steered = [method for key, method in plan.methods.items() if key.startswith("misvo_")]
        assert {method.step_size for method in steered} == {0.1}
        assert {method.strength for method in steered if method.penalty != "none"} == {1.0}


@pytest.mark.usefixtures("_a_cluster_with_the_weights")
def test_a_missing_value_function_is_a_step_to_do_first(tmp_path, capsys):
    name = "aisp_shp_llama3_8b_ultrarm"
    value = values_of(name)["set"]["method.re_control_paper.value"]
    command = (
        "python jobs/train_value.py policy=llama3_8b reward=ultrarm_13b_recontrol data=shp data.split=train "
        f"limit=1000 out={value}"
    )
    assert cli.main([f"experiment={name}", "dry_run=true"]) == 0
    assert f"first, for re_control_paper: {command}\n" in capsys.readouterr().out
    assert cli.main([f"experiment={name}"]) == 2
    assert f"method.re_control_paper first needs: {command}" in capsys.readouterr().err
    (tmp_path / value).parent.mkdir(parents=True)
    (tmp_path / value).touch()
    assert cli.main([f"experiment={name}", "dry_run=true"]) == 0
    assert "first" not in capsys.readouterr().out


@pytest.mark.usefixtures("_a_cluster_with_the_weights")
def test_what_is_missing_is_trained_once_in_the_same_job_with_the_models_of_the_experiment(monkeypatch):
    done, codes = [], iter([0, 3])
    monkeypatch.setattr(train_value, "train", lambda plan: done.append(plan) or next(codes))
    monkeypatch.setattr(cli, "evaluate", lambda plan, *_: done.append(plan.out) or 0)
    words = ["experiment=aisp_shp_gemma3_4b_ultrarm", "train=missing", "method.re_control_paper.training={limit: 7}"]
    assert cli.main([*words, "run.call_timeout_seconds=60"]) == 0
    training, out = done
    assert out.endswith("outputs/aisp_shp_gemma3_4b_ultrarm")
    assert training.settings.limit == 7
    assert training.settings.out == "outputs/value/shp_gemma3_4b_ultrarm.safetensors"
    assert (training.policy.max_new_tokens, training.data.split, training.data.sample) == (128, "train", None)
    assert training.run.call_timeout_seconds == 60
    assert cli.main(words) == 3  # a training that fails ends the job
    assert len(done) == 3


@pytest.mark.usefixtures("_a_cluster_with_the_weights")
def test_the_comment_of_an_experiment_is_the_command_that_it_prints(capsys):
    for name in NAMES:
        text = (config.conf_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        if "re_control_paper" in text:
            cli.main([f"experiment={name}", "dry_run=true"])
            command = capsys.readouterr().out.splitlines()[0].removeprefix("first, for re_control_paper: ")
            comment = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
            assert command in comment, command


@pytest.mark.usefixtures("_a_cluster_with_the_weights")
def test_a_key_of_the_command_line_wins_over_the_experiment():
    words = ["experiment=misvo_table1_phi_4", "method.misvo_paper.step_size=0.3", "seed=1340", "policy.slots=64"]
    plan = cli.make_plan(cli.read_command(words)[1])
    assert plan.methods["misvo_paper"].step_size == 0.3
    assert plan.seed == 1340
    assert plan.policy.slots == 64


@pytest.mark.usefixtures("_a_cluster_with_the_weights")
def test_the_commits_of_the_hub_are_in_the_fingerprint():
    plan = cli.pin(plan_of("aisp_hh_rlhf_gemma3_4b_eurus"))
    assert plan.fingerprint["policy"]["revision"] == "commit-of-google/gemma-3-4b-it"
    assert plan.fingerprint["reward"]["revision"] == "commit-of-openbmb/Eurus-RM-7b"
    assert plan.fingerprint["judges"]["ultrarm_13b"]["revision"] == "commit-of-openbmb/UltraRM-13b"
    assert plan.fingerprint["data"]["revision"] == "commit-of-Anthropic/hh-rlhf"
