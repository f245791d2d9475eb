"""Watches for preemption of a cloud machine and passes it on as SIGTERM."""

import os
import signal
import threading
import urllib.request
from pathlib import Path

from lmx.core.console import print_line

POLL_INTERVAL = 5.0  # seconds between two requests, and for one response
PRODUCT_NAME = Path("/sys/class/dmi/id/product_name")
# Values of Google's machines, TPUs among them. Live migration is not one of them.
# https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
EVENTS = {
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
    "preempted": "TRUE",
}


def find_metadata_host() -> str | None:
    """The metadata server of this machine; None if there is none."""
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    google = PRODUCT_NAME.exists() and PRODUCT_NAME.read_text().startswith("Google")
    return "metadata.google.internal" if google else None


class PreemptionWatcher:
    """Polls the metadata server, and sends this process SIGTERM at the first event."""

    def __init__(self):
        self.host, self.closed = find_metadata_host(), threading.Event()
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        if self.host:
            threading.Thread(target=self._poll, daemon=True).start()

    def close(self) -> None:
        """Stops polling."""
        self.closed.set()

    def _poll(self) -> None:
        while not self.closed.is_set():
            for name, value in EVENTS.items():
                if self._fetch(name) == value and not self.closed.is_set():
                    print_line(f"this machine is being preempted ({name}: {value})")
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            self.closed.wait(POLL_INTERVAL)

    def _fetch(self, name: str) -> str:
        """The value of a metadata key; empty if the server does not respond."""
        request = urllib.request.Request(
            f"http://{self.host}/computeMetadata/v1/instance/{name}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with self.opener.open(request, timeout=POLL_INTERVAL) as response:
                return response.read(256).decode().strip()
        except OSError:
            return ""
