"""Object stores by fsspec and boto3: how buckets are addressed, and with which credentials.

CoreWeave's object store takes virtual-hosted addresses alone (http://BUCKET.cwlota.com/KEY),
while boto3 uses path style (http://HOST/BUCKET/KEY) wherever an endpoint is set. Credentials are
boto3's: keys, a projected token of workload identity, or a container's endpoint.
Source: https://docs.coreweave.com/products/storage/object-storage/using-object-storage/s3-clients/aws
"""

import ipaddress
import os
from typing import Any
from urllib.parse import urlsplit

from trainer.contract.errors import RequestError

STYLE_VARIABLE = "AWS_S3_ADDRESSING_STYLE"  # ours: boto3 has this in its config file alone
STYLES = ("virtual", "path", "auto")
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# A Service of Kubernetes has no names below its own.
WITHOUT_SUBDOMAINS = (".svc", ".svc.cluster.local", ".local", ".internal")
URL_SECONDS = 12 * 3600


def filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL or path, and the path in it.

    Raises:
        RequestError: AWS_S3_ADDRESSING_STYLE is none of the styles.
    """
    import fsspec

    if "s3" in url.partition("://")[0] and (style := addressing_style()):
        # As a default for all S3 file systems: those of chained URLs too.
        options = fsspec.config.conf.setdefault("s3", {})
        config = options.setdefault("config_kwargs", {})
        config["s3"] = {**config.get("s3", {}), "addressing_style": style}
    return fsspec.core.url_to_fs(url)


def addressing_style() -> str:
    """How a bucket is named in requests; empty: as boto3 decides."""
    style = os.environ.get(STYLE_VARIABLE, "")
    if style and style not in STYLES:
        raise RequestError(
            f"{STYLE_VARIABLE} is no way to address a bucket (got {style!r}). "
            f"Use one of {', '.join(STYLES)}, or leave it out."
        )
    if style:
        return style
    endpoint = next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), "")
    configured = _config_file()
    if "addressing_style" in (configured.get("s3") or {}):
        return ""
    endpoint = endpoint or str(configured.get("endpoint_url", ""))
    return "virtual" if endpoint and _has_subdomains(endpoint) else ""


def presigned(url: str) -> str:
    """An http URL by which the object at s3://BUCKET/KEY is read without credentials."""
    import boto3
    from boto3.session import Config

    bucket, _, key = url.removeprefix("s3://").partition("/")
    session = boto3.Session()
    signed = session.get_credentials() is not None
    client = session.client(
        "s3",
        config=Config(
            signature_version="s3v4" if signed else _botocore().UNSIGNED,
            s3={"addressing_style": addressing_style() or "auto"},
        ),
    )
    named = {"Bucket": bucket, "Key": key}
    return client.generate_presigned_url("get_object", Params=named, ExpiresIn=URL_SECONDS)


def _has_subdomains(endpoint: str) -> bool:
    """Whether BUCKET.HOST can be a name: not below an address, a bare name or a Service."""
    host = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." in host and not host.endswith(WITHOUT_SUBDOMAINS)
    return False


def _config_file() -> dict[str, Any]:
    """What AWS_CONFIG_FILE says of the profile in use; empty where there is none."""
    try:
        botocore = _botocore()
    except ImportError:
        return {}  # s3fs alone, or no client: then the use of the URL says what is missing
    try:
        return botocore.session.Session().get_scoped_config()
    except botocore.exceptions.BotoCoreError:
        return {}


def _botocore() -> Any:
    """The library below boto3, as boto3 loads it: not a dependency of our own."""
    import boto3.session

    return boto3.session.botocore
