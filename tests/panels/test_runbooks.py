"""Each alert has its page, all pages are of one form, and what they name is there."""

import re

import click
import pytest

from eventcore.__main__ import main
from local.panels.alerts import alerts
from local.services import PROCESSES, ROOT
from tests.panels.runbook import FOLDER, SECTIONS, Runbook

NAMES = sorted({each.name for each in alerts()})


def test_there_is_a_page_for_each_alert_and_no_other() -> None:
    assert sorted(each.stem for each in FOLDER.glob("Shop*.md")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_of_the_common_form(name: str) -> None:
    page = Runbook.of(name)
    assert page.title == name
    assert page.sections == SECTIONS
    assert page.process in PROCESSES
    assert page.shown


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_its_alert_says(name: str) -> None:
    sentence = Runbook.of(name).sentence.removesuffix(".")
    for alert in alerts():
        if alert.name == name:
            assert alert.summary.startswith(sentence)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_leads_nowhere_that_is_not_there(name: str) -> None:
    page = Runbook.of(name)
    for target in re.findall(r"\]\(([^)]+)\)", page.text):
        assert (FOLDER / target).is_file(), target
    for path in re.findall(r"`((?:docs|charts|k8s)/[^`]+)`", page.text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_commands_that_are_there(name: str) -> None:
    for first, second in Runbook.of(name).commands:
        command = main.commands[first]
        if isinstance(command, click.Group):
            assert second in command.commands
