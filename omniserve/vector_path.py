"""Whether the vector path that the environment names is one that this CPU can take."""

from omniserve.errors import ConfigError


def require_vector_path() -> None:
    """Imports the kernels. Raises ConfigError where OMNISERVE_CPU_ISA names no possible path."""
    try:
        # The path is chosen while the package is imported, and a wrong one leaves no package.
        import cpu_attn  # noqa: F401
    except ValueError as error:
        if "OMNISERVE_CPU_ISA" not in str(error):
            raise
        raise ConfigError(str(error)) from error
