"""A cloud's word that this machine will be taken away, passed on as SIGTERM."""

import os
import signal
import threading
import urllib.request
from pathlib import Path

from lmx.data.progress import say

PAUSE = 5.0  # seconds between two questions, and for one answer
PRODUCT = Path("/sys/class/dmi/id/product_name")
# Of Google's machines, TPUs among them; a maintenance that moves the machine while it
# runs is none. https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
SIGNS = {
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
    "preempted": "TRUE",
}


def host() -> str | None:
    """Who can be asked about this machine; None where nobody can."""
    if told := os.environ.get("GCE_METADATA_HOST"):
        return told
    google = PRODUCT.exists() and PRODUCT.read_text().startswith("Google")
    return "metadata.google.internal" if google else None


class Eviction:
    """Asks now and then, and sends this process SIGTERM at the first sign."""

    def __init__(self):
        self.host, self.over = host(), threading.Event()
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        if self.host:
            threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> "Eviction":
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()

    def _watch(self) -> None:
        while True:
            for name, sign in SIGNS.items():
                if not self.over.is_set() and self._ask(name) == sign:
                    say(f"this machine will be taken away ({name}: {sign})")
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            if self.over.wait(PAUSE):
                return

    def _ask(self, name: str) -> str:
        """What the machine is told under that name; nothing if nobody answers."""
        request = urllib.request.Request(
            f"http://{self.host}/computeMetadata/v1/instance/{name}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with self.opener.open(request, timeout=PAUSE) as answer:
                return answer.read(256).decode().strip()
        except OSError:
            return ""
