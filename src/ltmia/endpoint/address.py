"""Where a server of log-probabilities is, and the connections to it.

Needs the extra `endpoint`.
"""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address

import httpx2

from ltmia.errors import ConfigError

API_KEY = "LTMIA_API_KEY"
"""Environment variable that holds the server's key. There is no option for it: options end up in histories and logs."""
PRINTABLE = re.compile(r"[!-~]+")
"""What the header with the key can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model on a server."""

    url: str
    """Base of the API, such as http://localhost:8000/v1."""
    model: str
    """Name of the model on the server."""
    api_key: str | None = field(default=None, repr=False)
    """Key of the server; it is sent, and never written anywhere."""
    concurrency: int = 8
    """Largest number of prompts under way at a time."""
    timeout: float = 300.0
    """Seconds to wait for an answer."""
    tries: int = 6
    """How often a prompt is sent until the server gives an answer."""
    first_wait: float = 1.0
    """Seconds before the second try; doubled each time."""

    def __post_init__(self) -> None:
        """Check the address and the key.

        Raises:
            ConfigError: If the address is no URL of HTTP, or holds a password or a query; or if no header can hold the
                key.
        """
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL:
            url = httpx2.URL()
        if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 1) < 2**16:
            # A damaged URL may hold a password, too.
            said = "" if any(sign in self.url for sign in "@?#") else f"={self.url}"
            raise ConfigError(f"`endpoint{said}`: expected a URL such as http://localhost:8000/v1")
        if url.userinfo or url.query or url.fragment:
            raise ConfigError(
                f"`endpoint`: the URL of {url.host} holds a password, a query or a fragment; leave them out, and put "
                f"a key into the environment variable {API_KEY}"
            )
        if self.api_key is not None and not PRINTABLE.fullmatch(self.api_key):
            raise ConfigError(
                f"the environment variable {API_KEY}: a key has no spaces, no line breaks and no letters outside "
                "ASCII; set it again without them"
            )

    @property
    def is_here(self) -> bool:
        """Whether the server runs on this machine."""
        host = httpx2.URL(self.url).host
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def base(self) -> str:
        """The URL without a slash at its end, and without /completions."""
        return self.url.rstrip("/").removesuffix("/completions")


def open_connections(endpoint: Endpoint) -> httpx2.AsyncClient:
    """Return the connections to a server, through the proxies that the environment names.

    Raises:
        ConfigError: If the environment names a proxy or certificates that cannot be used.
    """
    headers = {} if endpoint.api_key is None else {"Authorization": f"Bearer {endpoint.api_key}"}
    limits = httpx2.Limits(max_connections=endpoint.concurrency)
    try:
        # A proxy cannot reach this machine, and must not see what is sent to it.
        direct = httpx2.AsyncHTTPTransport(limits=limits) if endpoint.is_here else None
        return httpx2.AsyncClient(headers=headers, timeout=endpoint.timeout, limits=limits, transport=direct)
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        # Only this one is shown: the others may hold the password of a proxy.
        words = f" ({error})" if isinstance(error, ImportError) else ""
        raise ConfigError(
            "the environment names a proxy or certificates that cannot be used (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, "
            f"SSL_CERT_FILE){words}; set them right, or remove them"
        ) from None
