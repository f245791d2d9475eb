"""Masking of personal data: email and IP addresses."""

import ipaddress
import re
from dataclasses import dataclass

from lmx.config.registry import configurable
from lmx.data.corpus.corpus import Document
from lmx.data.curate.filter import Filter

# A dot-atom at a domain of at least two labels, the last one of letters: the common
# part of RFC 5322, section 3.4.1.
EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)
# Candidates for addresses of IPv4 or IPv6, which `ipaddress` then parses.
IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]{2,39})(?![\w:]|\.\d)"
)


@configurable
@dataclass(frozen=True, kw_only=True)
class MaskPII(Filter):
    """Replaces each email address and each public IP address by a placeholder.

    Private and reserved IP addresses are kept, as they identify nobody.
    """

    email: str = "<email>"
    ip: str = "<ip>"

    def __call__(self, document: Document) -> Document | str:
        text = EMAIL.sub(self.email, document.text)
        return document._replace(text=IP.sub(self._mask_address, text))

    def _mask_address(self, match: re.Match[str]) -> str:
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:
            public = False
        return self.ip if public else match[0]
