"""Wheels made by hand: of files, or of what is installed somewhere."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping
from pathlib import Path


def write_wheel(shelf: Path, project: str, version: str, files: Mapping[str, str | bytes]) -> Path:
    """Writes the wheel of a project that consists of `files`, for whichever Python reads it."""
    about = f"{project}-{version}.dist-info"
    name = project.replace("_", "-")
    whole = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"]),
    }
    wheel = shelf / f"{project}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in whole.items():
            archive.writestr(path, content)
    return wheel


def of_installed(site: Path, project: str, shelf: Path) -> Path:
    """Writes the wheel of a project as it is installed in `site`: its import packages only."""
    (about,) = site.glob(f"{project}-*.dist-info")
    version = about.name.removeprefix(f"{project}-").removesuffix(".dist-info")
    files = {}
    for path, *_ in csv.reader((about / "RECORD").read_text().splitlines()):
        package = path.partition("/")[0]
        if package.endswith((".libs", ".scripts", ".dist-info", "..")) or path.endswith(".pyc"):
            continue
        files[path] = (site / path).read_bytes()
    return write_wheel(shelf, project, version, files)
