"""Upload of an exported folder to the HF hub."""

import dataclasses
from pathlib import Path

from ivon_jax.errors import prefixed


@dataclasses.dataclass(frozen=True)
class Repository:
    """A model's repository on the hub.

    Attributes:
        name: organisation or user, and name: ``ORG/NAME``.
    """

    name: str

    @classmethod
    def named(cls, name: str) -> "Repository":
        """Checks a name and that there is a token, without the network.

        Raises:
            ValueError: the name is not ``ORG/NAME``, or no user is logged in.
        """
        from huggingface_hub import get_token
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        with prefixed("push", (HFValidationError,)):
            validate_repo_id(name)
        if name.count("/") != 1:
            raise ValueError(f"push: {name!r} is not ORG/NAME")
        if not get_token():
            raise ValueError("push: no token; set HF_TOKEN or run `hf auth login`")
        return cls(name)

    def upload(self, folder: Path) -> str:
        """Uploads a folder in one commit, to a new private repository if there is none.

        Args:
            folder: an exported folder, which stays as it is.

        Returns:
            The repository's address.

        Raises:
            ValueError: the hub cannot be reached, or refuses.
        """
        from huggingface_hub import HfApi

        api = HfApi(library_name="ivon-jax")
        # Any error of the library: what it raises depends on the transport.
        with prefixed(f"push: {self.name}, from {folder}", (Exception,)):
            url = api.create_repo(self.name, private=True, exist_ok=True)
            api.upload_folder(
                repo_id=url.repo_id, folder_path=folder, commit_message="Upload model"
            )
        return str(url)
