"""Where the distribution's RabbitMQ is, installed now if it is missing and we may."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from local.child import CannotStart

# The scripts behind the distribution's wrappers, which would change to another user.
_SCRIPTS = Path("/usr/lib/rabbitmq/bin")

# Installing must not start the distribution's own node, now or at the next boot.
_INSTALL = """
set -eu
export DEBIAN_FRONTEND=noninteractive
if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
fi
apt-get -qq update
apt-get -qq install --yes --no-install-recommends rabbitmq-server
update-rc.d rabbitmq-server disable
"""


def rabbitmq_programs() -> Path:
    """The folder with `rabbitmq-server` and `rabbitmqctl`.

    Installs the package `rabbitmq-server` with apt for root or with a sudo that asks no
    password; raises CannotStart where that cannot be done.
    """
    found = _find()
    if found is None:
        _install()
        found = _find()
    if found is None:
        raise CannotStart("RabbitMQ was installed but cannot be found: is it an unusual package?")
    return found


def _find() -> Path | None:
    if (_SCRIPTS / "rabbitmq-server").exists():
        return _SCRIPTS
    elsewhere = shutil.which("rabbitmq-server")
    return Path(elsewhere).parent if elsewhere else None


def _install() -> None:
    advice = "install the package rabbitmq-server, or set RABBITMQ_URL to a broker you have"
    if not shutil.which("apt-get"):
        raise CannotStart(f"RabbitMQ is missing and this system has no apt: {advice}.")
    prefix = _root_prefix()
    if prefix is None:
        raise CannotStart(f"RabbitMQ is missing and installing it takes root: {advice}.")
    print("Installing rabbitmq-server, once ...", file=sys.stderr)
    with (Path(tempfile.gettempdir()) / "rabbitmq-install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _find():
            return  # somebody else did it while we waited
        done = subprocess.run(
            [*prefix, "sh", "-c", _INSTALL],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotStart(f"apt could not install RabbitMQ: {said[-1] if said else ''}; {advice}.")


def _root_prefix() -> list[str] | None:
    """What to put before a command to run it as root, or None if we may not."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    allowed = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    return ["sudo", "-n"] if allowed.returncode == 0 else None
