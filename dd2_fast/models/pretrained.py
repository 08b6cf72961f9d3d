"""`from_pretrained`, `save_pretrained` and `push_to_hub`, which users of the hubs look for."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class Pushable:
    """Sends to the Hub what `save_pretrained` of the class writes."""

    save_pretrained: Any

    def push_to_hub(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        private: bool = False,
        commit_message: str = "Upload model",
        **settings: Any,
    ) -> str:
        """Send what `save_pretrained` writes to a repository of the Hub, made unless it is there.

        Args:
            repo_id: `owner/name`. revision: a branch, made unless it is there.
            private: of a repository that is made. settings: of `save_pretrained`.

        Returns the commit's address. Raises ValueError for a wrong name, ModuleNotFoundError
        without `huggingface_hub`, what that raises, and what `save_pretrained` raises.
        """
        return _above("pretrained").push(
            lambda folder: self.save_pretrained(folder, **settings),
            repo_id,
            revision=revision,
            private=private,
            message=commit_message,
        )


class Pretrained(Pushable):
    """A model that is kept in folders as the model hubs have them."""

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, revision: str | None = None, **settings: Any
    ) -> Self:
        """The model of this class in a folder, or in a repository of the Hub, which is fetched by
        `huggingface_hub` (extra `hub`).

        Args:
            source: a path, or `owner/name`. revision: a branch, tag or commit of a repository.
            settings: as of `dd2_fast.checkpoints.load`: `tokenizer=`, and what nothing else tells.

        Raises what `dd2_fast.checkpoints.load` raises, TypeError for a model of another class,
        FileNotFoundError and ModuleNotFoundError where there is nothing, or nothing to fetch with.
        """
        model: Self = _above("pretrained").from_pretrained(
            source, revision=revision, kind=cls, **settings
        )
        return model

    def save_pretrained(self, folder: str | os.PathLike[str], **settings: Any) -> None:
        """Write the model, with the tokenizer that is attached, as such a folder: `config.json`,
        `model.safetensors`, in several files above 5 GB, and a card, `README.md`.

        Args:
            settings: `run`, `licence`, `picture` and `max_shard_size`, as of
                `dd2_fast.checkpoints.save_pretrained`, which says what is raised.
        """
        tokenizer = getattr(self, "tokenizer", None)
        _above("pretrained").save_pretrained(folder, self, tokenizer=tokenizer, **settings)


def _above(name: str) -> Any:
    """A module of `checkpoints`, which imports the models, so not they it."""
    return importlib.import_module(f"dd2_fast.checkpoints.{name}")
