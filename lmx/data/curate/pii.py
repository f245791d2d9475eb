"""What tells who someone is: addresses of people and of machines."""

import ipaddress
import re
from dataclasses import dataclass

from lmx.config.registry import configurable
from lmx.data.corpus.corpus import Document
from lmx.data.curate.filter import Filter

# A dot-atom at a domain of two labels or more, the last of them of letters: the common
# part of RFC 5322, section 3.4.1.
EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)
# What may be an address of IPv4 or IPv6; `ipaddress` knows whether it is.
IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]{2,39})(?![\w:]|\.\d)"
)


@configurable
@dataclass(frozen=True, kw_only=True)
class MaskPII(Filter):
    """Puts a word in place of each email address, and of each public IP address.

    Addresses of private networks, and of no network, stand: they say nothing of anyone.
    """

    email: str = "<email>"
    ip: str = "<ip>"

    def __call__(self, document: Document) -> Document | str:
        text = EMAIL.sub(self.email, document.text)
        return document._replace(text=IP.sub(self._mask_address, text))

    def _mask_address(self, found: re.Match[str]) -> str:
        try:
            public = ipaddress.ip_address(found[0]).is_global
        except ValueError:
            public = False
        return self.ip if public else found[0]
