"""A model folder on the Hugging Face Hub."""

from pathlib import Path

import timm
from huggingface_hub import CommitOperationAdd, HfApi

from isomax_adapters.timm.folder import CONFIG, WEIGHTS, ModelFolderError

CARD = "README.md"
UNNAMED = "hf-hub:USER/NAME"  #: what a model card says as long as the model has no place


def push_model(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Add model",
) -> str:
    """Publish a model folder: weights, configuration, threshold and model card, in one commit.

    The repository is made if it is not there. ``timm.create_model("hf-hub:REPO_ID",
    pretrained=True)`` then loads the model.

    :param folder: a model folder
    :param repo_id: ``USER/NAME``, or ``NAME`` for one's own
    :param private: whether only its owners see a repository that is made
    :param token: of the account, if not the one that is logged in
    :param revision: branch
    :return: address of the commit
    :raises ModelFolderError: if the folder is none
    :raises OSError: if the server cannot be reached or refuses, as ``huggingface_hub`` says it
    """
    folder = Path(folder)
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise ModelFolderError(f"{folder} has no {missing[0]}; it is not a model folder")
    api = HfApi(token=token, library_name="timm", library_version=timm.__version__)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    files: dict[str, Path | bytes] = {
        path.name: path for path in sorted(folder.iterdir()) if path.is_file()
    }
    if CARD in files:
        card = (folder / CARD).read_text(encoding="utf-8")
        files[CARD] = card.replace(UNNAMED, f"hf-hub:{repo_id}").encode()
    done = api.create_commit(
        repo_id,
        [CommitOperationAdd(name, content) for name, content in files.items()],
        commit_message=commit_message,
        revision=revision,
    )
    return str(done.commit_url)
