"""The gRPC port with TLS."""

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from journal.store import StoreJournal
from kernel.errors import ConfigurationError, Unavailable
from sidecar_api.client import Client, ClientSettings
from sidecar_api.server import NodeServer, ServerSettings


def make_certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


async def test_a_node_with_a_certificate_speaks_tls_and_nothing_else(
    store: StoreJournal, tmp_path: Path
) -> None:
    cert, key = make_certificate(tmp_path)
    server = NodeServer(store, ServerSettings(port=0, tls_cert=cert, tls_key=key))
    await server.start()
    try:
        trusting = ClientSettings(tls_ca=cert)
        async with Client(f"everstate+tls://127.0.0.1:{server.port}", trusting) as client:
            await client.append_event("cart", "c", "Made", b"")
            assert (await client.get_log()).head == 1
        impatient = ClientSettings(retry_for=timedelta(seconds=0.2))
        async with Client(f"everstate://127.0.0.1:{server.port}", impatient) as plain:
            with pytest.raises(Unavailable):
                await plain.get_log()
    finally:
        await server.stop(timedelta(seconds=1))


async def test_a_key_without_a_certificate_is_refused(store: StoreJournal, tmp_path: Path) -> None:
    _, key = make_certificate(tmp_path)
    server = NodeServer(store, ServerSettings(port=0, tls_key=key))
    with pytest.raises(ConfigurationError, match="go together"):
        await server.start()
    await server.stop(timedelta(0))
