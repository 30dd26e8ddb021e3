"""What a library says of its troubles, kept instead of logged."""

import logging


class LastWords(logging.Handler):
    """Keeps the newest warning of a library, which would log one for every retry."""

    def __init__(self, library: str) -> None:
        super().__init__(logging.WARNING)
        self.text = ""
        self._logger = logging.getLogger(library)
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()

    def close(self) -> None:
        """The library logs as it did before."""
        self._logger.removeHandler(self)
        self._logger.propagate = True
        super().close()
