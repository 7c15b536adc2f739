"""Finds programs of the distribution's packages; installs missing packages if it may."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from local.child import CannotStart

# RabbitMQ's scripts behind the distribution's wrappers, which would change to another user.
_SCRIPTS = Path("/usr/lib/rabbitmq/bin")

# Installing must not start the distribution's own service, now or at the next boot.
_INSTALL = """
set -eu
export DEBIAN_FRONTEND=noninteractive
if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
fi
apt-get -qq update
apt-get -qq install --yes --no-install-recommends "$1"
if [ -e "/etc/init.d/$1" ]; then update-rc.d "$1" disable; fi
"""


def rabbitmq_programs() -> Path:
    """The folder with `rabbitmq-server` and `rabbitmqctl`.

    Installs the package `rabbitmq-server` with apt for root or with a sudo that asks no
    password; raises CannotStart where that cannot be done.
    """
    advice = "install the package rabbitmq-server, or set RABBITMQ_URL to a broker you have"
    return _installed("rabbitmq-server", _find_rabbitmq, advice)


def prometheus_programs() -> Path:
    """The folder with `prometheus` and `promtool`; else as for `rabbitmq_programs`."""
    advice = "install the package prometheus"
    return _installed("prometheus", lambda: _on_path("promtool"), advice)


def alertmanager_programs() -> Path:
    """The folder with `amtool`; else as for `rabbitmq_programs`."""
    advice = "install the package prometheus-alertmanager"
    return _installed("prometheus-alertmanager", lambda: _on_path("amtool"), advice)


def wrk_program() -> Path:
    """The load generator `wrk`; else as for `rabbitmq_programs`."""
    return _installed("wrk", lambda: _on_path("wrk"), "install the package wrk") / "wrk"


def pgbouncer_program() -> Path:
    """The connection pooler `pgbouncer`; else as for `rabbitmq_programs`."""
    return _installed("pgbouncer", _find_pgbouncer, "install the package pgbouncer") / "pgbouncer"


def chromium_program() -> Path:
    """The browser `chromium`; else as for `rabbitmq_programs`."""
    return _installed("chromium", lambda: _on_path("chromium"), "install the package chromium")


def install_all() -> None:
    """Installs what the tests need, or says what is missing; raises CannotStart for the first."""
    for find in (
        rabbitmq_programs,
        prometheus_programs,
        alertmanager_programs,
        pgbouncer_program,
        chromium_program,
    ):
        find()
    if not shutil.which("helm"):
        print("Helm is not on the PATH: the tests of the chart are left out.", file=sys.stderr)


def _find_pgbouncer() -> Path | None:
    """Debian keeps it where only root looks."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Path(found).parent if found else None


def _find_rabbitmq() -> Path | None:
    return _SCRIPTS if (_SCRIPTS / "rabbitmq-server").exists() else _on_path("rabbitmq-server")


def _on_path(program: str) -> Path | None:
    found = shutil.which(program)
    return Path(found).parent if found else None


def _installed(package: str, find: Callable[[], Path | None], advice: str) -> Path:
    found = find()
    if found is None:
        _install(package, find, advice)
        found = find()
    if found is None:
        raise CannotStart(f"{package} was installed but cannot be found: is it an unusual package?")
    return found


def _install(package: str, find: Callable[[], Path | None], advice: str) -> None:
    if not shutil.which("apt-get"):
        raise CannotStart(f"{package} is missing and this system has no apt: {advice}.")
    prefix = _root_prefix()
    if prefix is None:
        raise CannotStart(f"{package} is missing and installing it takes root: {advice}.")
    print(f"Installing {package}, once ...", file=sys.stderr)
    with (Path(tempfile.gettempdir()) / "packages-install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if find():
            return  # another process installed it while this one waited
        done = subprocess.run(
            [*prefix, "sh", "-c", _INSTALL, "install", package],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotStart(f"apt could not install {package}: {said[-1] if said else ''}; {advice}.")


def _root_prefix() -> list[str] | None:
    """The prefix of a command that runs it as root, or None without that right."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    allowed = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    return ["sudo", "-n"] if allowed.returncode == 0 else None


if __name__ == "__main__":
    try:
        install_all()
    except CannotStart as problem:
        sys.exit(f"make test: {problem} `make unit` needs no server.")
