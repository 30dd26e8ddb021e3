"""Whether the environment holds what this distribution installed, and how its children find it."""

import importlib.metadata
import os
import site
from collections.abc import Mapping
from pathlib import Path

import omniserve

TOP_LEVEL_PACKAGES = ("omniserve", "scheduler", "cpu_attn")
DISTRIBUTION = "omniserve"


def package_collisions() -> list[str]:
    """One sentence for each of our packages that another installed distribution claims too.

    Installers overwrite files of the same name without a word, so the two would be mixed.
    """
    owners = importlib.metadata.packages_distributions()
    return [
        f"the package {package!r} is also installed by {', '.join(others)}; "
        "install omniserve into an environment of its own"
        for package in TOP_LEVEL_PACKAGES
        if (others := sorted(set(owners.get(package, ())) - {DISTRIBUTION}))
    ]


def environment_with_packages(environment: Mapping[str, str]) -> dict[str, str]:
    """For a child that is to import these very packages, from a checkout too."""
    root = str(Path(omniserve.__file__).resolve().parents[1])
    if root in site.getsitepackages():
        return dict(environment)
    paths = [root, environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
