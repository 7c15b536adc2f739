"""The commands' help, and what they say without settings."""

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from eventcore.__main__ import main
from eventcore.errors import Misconfigured
from eventcore.operate.shared import command_settings
from eventcore.settings import ProjectionSettings


def groups() -> Iterator[list[str]]:
    yield []
    yield from ([name] for name, each in main.commands.items() if isinstance(each, click.Group))


@pytest.mark.parametrize("group", [*groups()])
def test_a_list_of_commands_has_a_whole_sentence_for_each(group: list[str]) -> None:
    shown = CliRunner().invoke(main, [*group, "--help"]).output
    listed = re.findall(r"^  ([a-z-]+)  +(.*)$", shown.partition("Commands:")[2], re.MULTILINE)
    of = main.commands[group[0]] if group else main
    assert isinstance(of, click.Group)
    assert [name for name, _ in listed] == sorted(of.commands)
    assert [name for name, summary in listed if not summary.endswith(".") or "..." in summary] == []


def test_a_command_without_settings_says_whose_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEED_URL", raising=False)
    with pytest.raises(
        Misconfigured, match=r"FEED_URL is not set.* pod of the projector.*shell` without IN"
    ):
        command_settings(ProjectionSettings, "lag")
