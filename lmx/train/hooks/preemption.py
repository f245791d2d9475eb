"""A cloud's word that this machine will be taken away, passed on as SIGTERM."""

import os
import signal
import threading
import urllib.request
from pathlib import Path

from lmx.core.console import print_line

POLL_INTERVAL = 5.0  # seconds between two questions, and for one answer
PRODUCT_NAME = Path("/sys/class/dmi/id/product_name")
# Of Google's machines, TPUs among them; a maintenance that moves the machine while it
# runs is none. https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
EVENTS = {
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
    "preempted": "TRUE",
}


def metadata_host() -> str | None:
    """Who can be asked about this machine; None where nobody can."""
    if told := os.environ.get("GCE_METADATA_HOST"):
        return told
    google = PRODUCT_NAME.exists() and PRODUCT_NAME.read_text().startswith("Google")
    return "metadata.google.internal" if google else None


class PreemptionWatcher:
    """Asks now and then, and sends this process SIGTERM at the first sign."""

    def __init__(self):
        self.host, self.closed = metadata_host(), threading.Event()
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        if self.host:
            threading.Thread(target=self._poll, daemon=True).start()

    def __enter__(self) -> "PreemptionWatcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()

    def _poll(self) -> None:
        while True:
            for name, sign in EVENTS.items():
                if not self.closed.is_set() and self._fetch(name) == sign:
                    print_line(f"this machine will be taken away ({name}: {sign})")
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            if self.closed.wait(POLL_INTERVAL):
                return

    def _fetch(self, name: str) -> str:
        """What the machine is told under that name; nothing if nobody answers."""
        request = urllib.request.Request(
            f"http://{self.host}/computeMetadata/v1/instance/{name}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with self.opener.open(request, timeout=POLL_INTERVAL) as answer:
                return answer.read(256).decode().strip()
        except OSError:
            return ""
