"""Pictures of a daemon's status page: `python tests/status_screenshots.py URL DIRECTORY`."""

import sys
import time
from pathlib import Path

from chromium import running_chromium

PAGES = {"status-page.png": "light", "status-page-dark.png": "dark"}
SETTLE_S = 3.0


def main(url: str, directory: str) -> None:
    """Writes one for light and one for dark surroundings."""
    with running_chromium() as browser:
        for name, scheme in PAGES.items():
            browser.open(url, width=1240, scheme=scheme)
            browser.wait_for_text("#link", "live")
            time.sleep(SETTLE_S)
            (Path(directory) / name).write_bytes(browser.picture())


if __name__ == "__main__":
    main(*sys.argv[1:])
