"""A runbook, read: the command to run first, where, and what it shows."""

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "runbooks"

SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]

_BEGINNING = re.compile(
    r"# (?P<title>\w+)\n\n(?P<sentence>[^\n]+\.)\n\n"
    r"```sh\n# in the shell of (?P<process>[a-z-]+)\n(?P<command>[^\n]+)\n```\n\n"
    r"It prints, among others:\n\n```text\n(?P<shown>.+?)\n```\n\n## "
    "(?P<rest>.+)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Runbook:
    """One page."""

    title: str
    sentence: str
    process: str
    command: str
    shown: list[str]
    text: str

    @classmethod
    def of(cls, alert: str) -> "Runbook":
        """The page of an alert, which must begin as all do."""
        text = (FOLDER / f"{alert}.md").read_text()
        begins = _BEGINNING.fullmatch(text)
        assert begins, f"{alert}.md does not begin with title, sentence, command, what it prints"
        title, sentence, process, command, shown, _ = begins.groups()
        return cls(title, sentence, process, command, shown.splitlines(), text)

    @property
    def sections(self) -> list[str]:
        """Their titles."""
        return re.findall("^## (.+)$", self.text, re.MULTILINE)

    @property
    def commands(self) -> set[tuple[str, str]]:
        """What it calls of `python -m eventcore`, by its first two words."""
        found = re.findall(r"python\s-m\seventcore\s([a-z-]+)(?:\s([a-z-]+))?", self.text)
        return {(first, second) for first, second in found}
