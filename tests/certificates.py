"""Certificates for tests of TLS, made by openssl: a CA, and what it signs. Valid for a day."""

import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_ca(folder: Path, name: str) -> None:
    """Writes NAME.crt and NAME.key, those of a CA."""
    uses = ("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-days", "1")
    out = ("-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}")
    _openssl(folder, "req", "-x509", *_KEY, *out, *uses)


def sign(folder: Path, ca: str, name: str, alternatives: str) -> None:
    """Writes NAME.crt and NAME.key of a server; `alternatives` is such as DNS:a,IP:127.0.0.1."""
    (folder / f"{name}.ext").write_text(
        f"subjectAltName={alternatives}\n"
        "authorityKeyIdentifier=keyid\nbasicConstraints=critical,CA:FALSE\n"
    )
    request = ("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    _openssl(folder, "req", *_KEY, *request)
    signed_by = ("-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial")
    out = ("-out", f"{name}.crt", "-days", "1", "-extfile", f"{name}.ext")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed_by, *out)


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
