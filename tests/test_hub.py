import os

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from aisp_ray.lm import hub


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    hub.look_up.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    yield
    hub.look_up.cache_clear()


def answer(monkeypatch, result):
    def repo_info(self, *_, **__):
        if isinstance(result, type):
            raise result.__new__(result)
        return result

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)


class Info:
    sha = "abc123"
    gated = False


def refusal(**kwargs):
    with pytest.raises(ValueError, match=r"policy\.model=owner/name") as caught:
        hub.look_up("owner/name", "policy.model", **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_commit_of_the_newest_revision_is_found(monkeypatch):
    answer(monkeypatch, Info())
    assert hub.look_up("owner/name", "policy.model") == "abc123"


@pytest.mark.parametrize("key", ["policy", "judges.strict"])
def test_a_missing_revision_names_the_setting(monkeypatch, key):
    answer(monkeypatch, errors.RevisionNotFoundError)
    with pytest.raises(ValueError, match=f"leave {key}.revision out"):
        hub.look_up("owner/name", f"{key}.model", revision="v9")


def test_a_gated_model_without_a_token_says_where_to_accept_and_how_to_log_in(monkeypatch):
    class Gated(Info):
        gated = "manual"

    def auth_check(self, *_, **__):
        raise errors.GatedRepoError.__new__(errors.GatedRepoError)

    answer(monkeypatch, Gated())
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", auth_check)
    text = refusal()
    assert "https://huggingface.co/owner/name" in text
    assert "hf auth login" in text
    assert "HF_TOKEN on every node" in text


def test_no_such_name_and_no_such_revision_are_told_apart(monkeypatch):
    answer(monkeypatch, errors.RepositoryNotFoundError)
    assert "neither a local path nor a model on the hub" in refusal()
    answer(monkeypatch, errors.RevisionNotFoundError)
    hub.look_up.cache_clear()
    text = refusal(revision="v9")
    assert "no revision 'v9'; leave policy.revision out" in text
    assert "hf repos tag list owner/name" in text


def test_without_a_network_the_way_out_is_named_and_a_copy_is_enough(monkeypatch, tmp_path):
    answer(monkeypatch, ConnectionError)
    assert "hf download owner/name --revision v1" in refusal(revision="v1")
    folder = tmp_path / "hub" / "models--owner--name"
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee" / "config.json").write_text("{}")
    hub.look_up.cache_clear()
    cache = str(tmp_path / "hub")
    assert hub.look_up("owner/name", "policy.model", cache=cache) == "c0ffee"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.look_up.cache_clear()
    assert hub.look_up("owner/name", "policy.model", cache=cache) == "c0ffee"


def test_offline_without_a_copy_says_which_switch_and_which_command(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = refusal()
    assert "HF_HUB_OFFLINE is set" in text
    assert "hf download owner/name" in text


def test_a_prepared_dataset_in_the_cache_is_enough_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "datasets" / "owner___name").mkdir(parents=True)
    assert hub.look_up("owner/name", "data.path", "dataset") is None


def test_a_cache_on_a_shared_disk_that_this_user_may_not_use_is_said(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    answer(monkeypatch, Info())
    assert "export HF_HOME=" in refusal()
