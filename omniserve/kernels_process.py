"""The child of `omniserve kernels warm-up`: `python -m omniserve.kernels_process`.

It takes the arguments of `cpu_attn.warm_up_command`.
"""

import sys

from omniserve.errors import ConfigError
from omniserve.vector_path import require_vector_path

_EXIT_USAGE = 2


def main() -> int:
    """Compiles; the exit status is that of the command, or 2 for a wrong vector path."""
    try:
        require_vector_path()
    except ConfigError as error:
        sys.stderr.write(f"omniserve: {error}\n")
        return _EXIT_USAGE
    from cpu_attn.warm_up_command import main as warm_up

    return warm_up()


if __name__ == "__main__":
    sys.exit(main())
