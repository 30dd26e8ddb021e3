"""Whether the environment holds what this distribution installed."""

import importlib.metadata

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
