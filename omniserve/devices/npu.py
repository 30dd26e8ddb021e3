"""What Ascend needs beyond torch.accelerator. Unproven: no Ascend machine has run this."""

from omniserve.errors import ConfigError


def load() -> None:
    """Imports torch_npu, which registers the `npu` device with torch.

    Raises:
        ConfigError: torch_npu is not installed.
    """
    try:
        import torch_npu  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "device.kind: 'npu' needs torch_npu; install omniserve with its npu extra"
        ) from error
