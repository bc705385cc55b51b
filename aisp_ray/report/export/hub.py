"""Pushes a data set to the Hugging Face hub as it lies in its folder: the card and the shards."""

from __future__ import annotations

from aisp_ray.report.export.settings import ExportSettings
from aisp_ray.report.export.shards import CONTROL, DATA


def push(settings: ExportSettings) -> None:
    """Create the data set where it is missing, and replace its card and shards in one commit; other files stay.

    Raises:
        ValueError: the hub refuses, or cannot be reached; the export itself is written.
    """
    from huggingface_hub import HfApi

    assert settings.push_to is not None
    shards = [f"{folder}/*.parquet" for folder in (DATA, CONTROL)]
    api = HfApi()
    try:
        api.create_repo(settings.push_to, repo_type="dataset", private=settings.private, exist_ok=True)
        api.upload_folder(
            repo_id=settings.push_to,
            repo_type="dataset",
            folder_path=settings.folder,
            allow_patterns=["README.md", *shards],
            delete_patterns=shards,
            commit_message=f"{settings.format} set by aisp-ray",
        )
    except Exception as error:  # a name that is none, no rights, no network in any of its forms
        raise ValueError(
            f"push_to={settings.push_to}: {type(error).__name__}: {str(error).split(chr(10))[0]}; the data set is in "
            f"{settings.folder}. Log in with `hf auth login` or set HF_TOKEN, then give the command again"
        ) from error
