"""How a user's own data are read: her options, checked before a run begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from cutlayer.broker.errors import SettingsError

__all__ = ["DEFAULT_MAX_UNREADABLE", "OPTION_NAMES", "Fit", "UserDataOptions", "user_data_options"]

Fit = Literal["crop", "stretch", "pad"]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

DEFAULT_MAX_UNREADABLE = 0.01
"""A few broken files in a large collection are usual; one in a hundred says that something else is wrong."""


class UserDataOptions(BaseModel):
    """What `--data-option` takes beside names of columns.

    Attributes:
        fit: How an image of another shape than the run's is brought to it: `crop` scales the image until it just covers
            the wanted shape and cuts off what is over at both sides (what torchvision and timm evaluate with),
            `stretch` changes its proportions, `pad` scales it until it just fits and fills up with black.
        test_share: Share of the rows that are for testing where there is no column `split`.
        split_seed: Chooses which rows these are. The run's seed has no part in it, so runs can be compared.
        check: What is looked at before training: `header` opens every file and reads its header, `full` decodes it.
        max_unreadable: Share of the files that may be unreadable.
        alpha: With a shard: concentration of the Dirichlet partition of the train rows by class; None for IID.
        modality: With a folder of classes: what its files are, where the run has several modalities that come in files.
        root: Folder that paths in the table are relative to; the table's own when left out.
        columns: Which column to take for a name that the run uses, where it is called otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fit: Fit = "crop"
    test_share: Share = 0.2
    split_seed: Annotated[int, Field(ge=0)] = 0
    check: Literal["header", "full"] = "header"
    max_unreadable: Share = DEFAULT_MAX_UNREADABLE
    alpha: PositiveFloat | None = None
    modality: str | None = None
    root: Path | None = None
    columns: Mapping[str, str] = Field(default_factory=dict)


OPTION_NAMES = tuple(sorted(set(UserDataOptions.model_fields) - {"columns"}))
"""Keys of `--data-option` that are no names of a run's modalities or targets."""


def user_data_options(options: Mapping[str, object]) -> UserDataOptions:
    """Check options; a key that is none of ours names what is found in a column: `image=scan_path`.

    Raises:
        SettingsError: When a value is out of range, or a column has no name.
    """
    columns = {key: value for key, value in options.items() if key not in OPTION_NAMES}
    for key, column in columns.items():
        if not isinstance(column, str) or not column:
            raise SettingsError(
                f"--data-option {key}={column}: that is no name of a column",
                f"write {key}=COLUMN, or one of the options {', '.join(OPTION_NAMES)}",
            )
    try:
        return UserDataOptions.model_validate(
            {**{key: value for key, value in options.items() if key in OPTION_NAMES}, "columns": columns}
        )
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        choices = first.get("ctx", {}).get("expected") if first["type"] == "literal_error" else None
        raise SettingsError(
            f"--data-option {key}={first['input']}: {'no such choice' if choices else first['msg']}",
            f"choose {choices}" if choices else "docs/data.md lists the options and their ranges",
        ) from error
