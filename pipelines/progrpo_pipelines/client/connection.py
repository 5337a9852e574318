"""Where the KFP API is and who we are to it: endpoint, namespace, credentials, CA.

Credentials come from files or the environment, never from arguments, which other users of a machine and CI logs can
see. A token file is read again for every request, as the kubelet and OIDC helpers replace it while a run goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from progrpo.errors import ConfigError

IN_CLUSTER_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Projected service account token with the audience pipelines.kubeflow.org; kfp's default too."""
IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_IN_CLUSTER_ENDPOINT = "http://ml-pipeline.{}.svc.cluster.local:8888"

HOW_TO_AUTHENTICATE = (
    "Give a token by --token-file FILE or the variable KFP_EXISTING_TOKEN, or the cookie of a browser session "
    "(name=value) by --cookie-file FILE or the variable KFP_COOKIE"
)


@dataclass(frozen=True)
class Connection:
    """How to reach the KFP API; :meth:`token` and :meth:`cookie` are read when they are needed and never shown."""

    endpoint: str
    ui: str
    namespace: str | None = None
    token_file: Path | None = None
    cookie_file: Path | None = None
    ca_file: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def token(self) -> str | None:
        """Return the bearer token there is now."""
        if self.token_file is not None:
            return _read_secret(self.token_file, "token")
        return self.environment.get("KFP_EXISTING_TOKEN", "").strip() or None

    def cookie(self) -> str | None:
        """Return the session cookie there is now."""
        if self.cookie_file is not None:
            return _read_secret(self.cookie_file, "cookie")
        return self.environment.get("KFP_COOKIE", "").strip() or None

    @property
    def proxy(self) -> str | None:
        """Proxy from the environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY); kfp's own client knows none."""
        parts = urlsplit(self.endpoint)
        proxies: dict[str, str] = getproxies()
        if parts.hostname in ("127.0.0.1", "localhost", "::1") or proxy_bypass(parts.hostname or ""):
            return None
        return proxies.get(parts.scheme) or proxies.get("all")

    def run_url(self, run_id: str) -> str:
        """Return the address of the run's page."""
        return f"{self.ui}/#/runs/details/{run_id}"

    def artifact_url(self, uri: str, namespace: str | None) -> str | None:
        """Return the address at which the UI hands out an artifact (``buildReadFileUrl`` in its Apis.ts, 2.17.0)."""
        source, _, path = uri.partition("://")
        bucket, _, key = path.partition("?")[0].partition("/")
        if source not in ("minio", "s3", "gs") or not key:
            return None
        where = {"source": {"gs": "gcs"}.get(source, source), "namespace": namespace, "bucket": bucket, "key": key}
        return f"{self.ui}/artifacts/get?{urlencode({name: value for name, value in where.items() if value})}"


def connect(
    endpoint: str | None = None,
    *,
    namespace: str | None = None,
    token_file: Path | None = None,
    cookie_file: Path | None = None,
    ca_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Connection:
    """Find out how to reach the API; nothing is sent.

    Args:
        endpoint: URL; absent: ``KFP_ENDPOINT``, ``KF_PIPELINES_ENDPOINT``, or the service of the cluster we run in.
        namespace: of the user, where Kubeflow has several.
        token_file: holds a bearer token; absent: ``KF_PIPELINES_SA_TOKEN_PATH``, or in a cluster the projected token.
        cookie_file: holds ``name=value`` of a logged-in session.
        ca_file: PEM bundle to trust; absent: ``SSL_CERT_FILE``, ``REQUESTS_CA_BUNDLE``, or certifi's.
        environment: absent: ``os.environ``.

    Raises:
        ConfigError: no endpoint, or one that is no URL or holds a password; a file that cannot be read.
    """
    known = os.environ if environment is None else environment
    given = endpoint or known.get("KFP_ENDPOINT") or known.get("KF_PIPELINES_ENDPOINT")
    if given is None and "KUBERNETES_SERVICE_HOST" in known:
        given = _IN_CLUSTER_ENDPOINT.format(known.get("KFP_SERVICE_NAMESPACE", "kubeflow"))
    if not given:
        raise ConfigError(
            "no endpoint of Kubeflow Pipelines is known. Give --endpoint URL or the variable KFP_ENDPOINT; for a "
            "Kubeflow UI at https://kubeflow.example.com it is https://kubeflow.example.com/pipeline."
        )
    url = _checked(given)
    if token_file is None and not known.get("KFP_EXISTING_TOKEN"):
        token_file = _service_account_token(url, known)
    if token_file is not None:
        _read_secret(token_file, "token")
    if cookie_file is not None and "=" not in _read_secret(cookie_file, "cookie"):
        raise ConfigError(f"--cookie-file {cookie_file} must hold name=value, such as authservice_session=...")
    if ca_file is None:
        found = known.get("SSL_CERT_FILE") or known.get("REQUESTS_CA_BUNDLE")
        ca_file = Path(found) if found else None
    if ca_file is not None and not ca_file.is_file():
        raise ConfigError(f"the CA bundle {ca_file} is no file. Give a PEM file by --ca-file.")
    return Connection(
        endpoint=url,
        ui=(known.get("KF_PIPELINES_UI_ENDPOINT") or url).rstrip("/"),
        namespace=namespace,
        token_file=token_file,
        cookie_file=cookie_file,
        ca_file=ca_file,
        environment=dict(known),
    )


def _checked(endpoint: str) -> str:
    url = (endpoint if "://" in endpoint else f"https://{endpoint}").rstrip("/")  # kfp's own default
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"the endpoint must hold no user or password. {HOW_TO_AUTHENTICATE}.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(
            f"--endpoint {endpoint!r} is no address of an API. Write https://HOST[:PORT][/PATH]; for a Kubeflow UI the "
            f"path is /pipeline, and nothing follows it."
        )
    return url


def _service_account_token(url: str, environment: Mapping[str, str]) -> Path | None:
    """The service account's token, unless that would hand it to a host outside of the cluster."""
    if path := environment.get("KF_PIPELINES_SA_TOKEN_PATH"):
        return Path(path)
    host = urlsplit(url).hostname or ""
    inside = host.endswith((".svc", ".svc.cluster.local")) or "." not in host
    return IN_CLUSTER_TOKEN if inside and IN_CLUSTER_TOKEN.is_file() else None


def _read_secret(path: Path, what: str) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the {what} file {path} cannot be read: {getattr(error, 'strerror', error)}.") from None
    if not text or "\n" in text:
        raise ConfigError(f"the {what} file {path} must hold the {what} on one line, and nothing else.")
    return text
