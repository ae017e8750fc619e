"""Fetch what pip has no package of, into runs/bench-data: pictures of emoji (npm) and telephone prompts (Debian).

Releases are pinned, and npm and apt check what they fetch. Nothing is installed, and no rights are needed. What is
there already is left alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from cutlayer.broker.errors import SettingsError

from .emoji import NAME as EMOJI
from .emoji import VENDORS
from .package_files import DATA_FOLDER
from .prompts import LANGUAGES, sound_folder
from .prompts import NAME as PROMPTS

__all__ = ["extract", "fetch_emoji", "fetch_prompts"]

PICTURES_RELEASE = "16.0.0"
NAMES_RELEASE = "17.0.0"
PROMPTS_RELEASE = "1.6.1"


def fetch_emoji(folder: Path) -> None:
    """Fetch names and pictures, about 140 MB, of which 8 MB are kept.

    Raises:
        SettingsError: When npm is missing or fails.
    """
    if (folder / "data.json").is_file():
        print(f"{EMOJI}: there already")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for vendor in VENDORS:
        archive = f"emoji-datasource-{vendor}@{PICTURES_RELEASE}"
        _npm(archive, f"package/img/{vendor}/64/", ".png", folder / vendor)
    # The names come last: where they are, all else is.
    _npm(f"emojibase-data@{NAMES_RELEASE}", "package/en/", "/data.json", folder)


def fetch_prompts(folder: Path) -> None:
    """Fetch the sounds of each language that is not installed, about 20 MB each.

    Raises:
        SettingsError: When apt-get is missing or fails.
    """
    for language in LANGUAGES:
        package = f"asterisk-core-sounds-{language}-wav"
        try:
            print(f"{PROMPTS}: {sound_folder(language)} is there already")
        except SettingsError:
            print(f"{PROMPTS}: {package}", flush=True)
            with tempfile.TemporaryDirectory() as empty:
                _run("apt-get", ["download", package], Path(empty))
                for file in Path(empty).glob("*.deb"):
                    if f"_{PROMPTS_RELEASE}-" not in file.name:
                        print(
                            f"{PROMPTS}: {file.name} is not {PROMPTS_RELEASE}, so figures may differ", file=sys.stderr
                        )
                    _run("dpkg-deb", ["-x", str(file), "."], Path(empty))
                shutil.copytree(Path(empty) / "usr", folder / "usr", dirs_exist_ok=True)  # its licence with it


def extract(archive: Path, prefix: str, suffix: str, folder: Path) -> int:
    """Take files out of an archive, without their folders.

    Args:
        archive: A .tgz.
        prefix: What their paths begin with.
        suffix: What they end with.
        folder: Where they go; made if need be.

    Returns:
        How many they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.isfile() and member.name.startswith(prefix) and member.name.endswith(suffix):
                content = opened.extractfile(member)
                assert content is not None
                (folder / Path(member.name).name).write_bytes(content.read())
                number += 1
    return number


def _npm(package: str, prefix: str, suffix: str, folder: Path) -> None:
    print(f"{EMOJI}: {package}", flush=True)
    with tempfile.TemporaryDirectory() as empty:
        _run("npm", ["pack", "--silent", package], Path(empty))
        number = sum(extract(archive, prefix, suffix, folder) for archive in Path(empty).glob("*.tgz"))
    if not number:
        raise SettingsError(f"{package} has no {prefix}*{suffix}", "use the release that this script names")


def _run(program: str, arguments: list[str], folder: Path) -> None:
    path = shutil.which(program)
    if path is None:
        raise SettingsError(f"{program} is not installed", "sudo apt install npm, or a Debian system for apt-get")
    done = subprocess.run([path, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        detail = done.stderr.strip().rpartition("\n")[2]
        raise SettingsError(f"{program} {' '.join(arguments)} failed: {detail}", "check the network, and try again")


FETCHERS: dict[str, Callable[[Path], None]] = {EMOJI: fetch_emoji, PROMPTS: fetch_prompts}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=[], help=f"of {', '.join(FETCHERS)}; all by default")
    for name in parser.parse_args().what or FETCHERS:
        if name not in FETCHERS:
            parser.error(f"nothing called {name!r}: choose from {', '.join(FETCHERS)}")
        try:
            FETCHERS[name](DATA_FOLDER / name)
        except SettingsError as error:
            sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    main()
