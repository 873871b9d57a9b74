"""Throw-away certificates, and a front that speaks TLS before a plain server."""

from __future__ import annotations

import selectors
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Self

__all__ = ["Certificates", "TlsFront"]


def _openssl(*args: str | Path) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


class Certificates:
    """A certificate authority in a directory, and what it signed."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self.ca = directory / f"{name}.pem"
        self._ca_key = directory / f"{name}.key"
        request = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}")
        _openssl(*request, "-keyout", self._ca_key, "-out", self.ca)

    def sign(self, name: str, host: str, *, expired: bool = False) -> tuple[Path, Path]:
        """Certificate and key for a host, or an IP address."""
        cert, key, request = (self._directory / f"{name}.{end}" for end in ("pem", "key", "csr"))
        _openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={host}", "-keyout", key, "-out", request)
        extension = self._directory / f"{name}.ext"
        kind = "IP" if host[0].isdigit() else "DNS"
        extension.write_text(f"subjectAltName={kind}:{host}\n")
        days = ("-days", "-1") if expired else ("-days", "2")
        signing = ("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._ca_key, "-CAcreateserial")
        _openssl(*signing, *days, "-extfile", extension, "-out", cert)
        return cert, key


class TlsFront:
    """Takes TLS connections and passes what is in them to a plain server; one thread for each connection."""

    def __init__(self, target: int, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._target = ("127.0.0.1", target)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        if client_ca is not None:
            self._context.load_verify_locations(client_ca)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _spawn(self, run: object, *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._spawn(self._pass, raw)

    def _pass(self, raw: socket.socket) -> None:
        try:
            with (
                self._context.wrap_socket(raw, server_side=True) as inside,
                socket.create_connection(self._target) as plain,
                selectors.DefaultSelector() as selector,
            ):
                inside.setblocking(False)
                selector.register(inside, selectors.EVENT_READ, (inside, plain))
                selector.register(plain, selectors.EVENT_READ, (plain, inside))
                while self._move(selector):
                    pass
        except OSError:
            raw.close()

    @staticmethod
    def _move(selector: selectors.BaseSelector) -> bool:
        for key, _ in selector.select():
            source, sink = key.data
            try:
                data = source.recv(1 << 16)
            except ssl.SSLWantReadError:
                continue
            if not data:
                return False
            sink.setblocking(True)
            sink.sendall(data)
            sink.setblocking(not isinstance(sink, ssl.SSLSocket))
        return True
