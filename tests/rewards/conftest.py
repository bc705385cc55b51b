import pytest
import small_models


@pytest.fixture(scope="session")
def llama3(tmp_path_factory):
    return small_models.write_llama3_classifier(tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory):
    return small_models.write_qwen3_classifier(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def deberta(tmp_path_factory):
    return small_models.write_deberta(tmp_path_factory.mktemp("deberta"))


@pytest.fixture(scope="session")
def ultrarm(tmp_path_factory):
    return small_models.write_regression(tmp_path_factory.mktemp("ultrarm"), "ultrarm")


@pytest.fixture(scope="session")
def eurus(tmp_path_factory):
    return small_models.write_regression(tmp_path_factory.mktemp("eurus"), "eurus")
