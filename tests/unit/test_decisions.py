"""The decision records and their index."""

import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"


def test_the_index_has_every_record_with_its_title_status_and_date() -> None:
    expected = []
    for record in sorted(FOLDER.glob("[0-9]*.md")):
        found = re.match(
            r"# (\d+)\. (.+)\n\nDate: (\d{4}-\d\d-\d\d)\. Status: (accepted|withdrawn|superseded)",
            record.read_text(),
        )
        assert found, f"{record.name} begins with its title, date and status"
        number, title, date, status = found.groups()
        assert int(number) == int(record.name[:4])
        expected.append(f"| [{number}]({record.name}) | {title} | {status} | {date} |")
    rows = [line for line in (FOLDER / "README.md").read_text().splitlines() if line[:3] == "| ["]
    assert rows == expected
