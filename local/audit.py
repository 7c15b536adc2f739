"""Finds insecure code, secrets in files and vulnerable dependencies, for `make lint`.

The last check is left out if the list of vulnerabilities cannot be downloaded.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

_PROGRAMS = Path(sys.executable).parent
LOCKS = re.compile(r"(.*/)?requirements(-dev)?\.txt|local/uv\.txt")
LOCK = "tests/requirements.txt"
"""Holds every package that any other lock holds."""


def insecure_code() -> bool:
    """Returns whether bandit finds a problem, which it prints."""
    command = ("bandit", "-q", "-c", "pyproject.toml", "-r", "services", "local")
    done = _run(*command)
    print(done.stdout, end="")
    return done.returncode != 0


def secrets() -> bool:
    """Returns whether a file of the repository holds a possible secret; prints where.

    Names that have "password" in them are not looked for: they are all over the chart, whose own
    tests hold that none has a value.
    """
    listed = subprocess.run(("git", "ls-files", "-z"), capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name and not LOCKS.fullmatch(name)]
    files = [name for name in names if Path(name).is_file()]
    scan = ("detect-secrets", "scan", "--disable-plugin", "KeywordDetector")
    found = json.loads(_run(*scan, *files).stdout)["results"]
    for name, each in found.items():
        for secret in each:
            print(f"{name}:{secret['line_number']}: {secret['type']}")
    return bool(found)


def vulnerable_dependencies() -> bool:
    """Returns whether a locked package has a known vulnerability; prints it."""
    told = ("--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json")
    answer = _run("pip-audit", *told, "--requirement", LOCK)
    try:
        packages = json.loads(answer.stdout)["dependencies"]
    except ValueError:
        packages = []
    known = [each for each in packages if "vulns" in each]
    if not known:
        print(f"{LOCK} was not audited: the list of vulnerabilities cannot be had here.")
    for package in known:
        for each in package["vulns"]:
            mended = ", ".join(each["fix_versions"]) or "nothing yet"
            what = f"{package['name']} {package['version']} has {each['id']}"
            print(f"{LOCK}: {what}, mended by {mended}")
    return any(package["vulns"] for package in known)


def _run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        (str(_PROGRAMS / program), *arguments), capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    found = [look() for look in (insecure_code, secrets, vulnerable_dependencies)]
    sys.exit(any(found))
