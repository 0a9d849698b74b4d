"""A real S3 API, moto's server, on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def serving(port: int = 0) -> Iterator[str]:
    """The address of a server; what was stored is still there when another is started in this process."""
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()
        server._server.server_close()


@contextmanager
def bucket(name: str, variable: str = "AWS_ENDPOINT_URL") -> Iterator[str]:
    """The address of a server that has a bucket; `variable` and credentials in the environment lead to it."""
    with serving() as url, pytest.MonkeyPatch.context() as environment:
        for other in ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"):
            environment.delenv(other, raising=False)
        environment.setenv(variable, url)
        environment.setenv("AWS_ACCESS_KEY_ID", "any")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "any")
        environment.setenv("NO_PROXY", "127.0.0.1")
        boto3.client("s3", region_name="us-east-1", endpoint_url=url).create_bucket(Bucket=name)
        yield url
