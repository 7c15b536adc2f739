"""Half of `make pictures`: draws docs/images/journey.svg, a terminal in which an order travels.

Runs each command beside `make run` and shows what it printed.
"""

import json
import subprocess
import sys

from rich.console import Console
from rich.text import Text

from local.services import ROOT

PICTURE = ROOT / "docs/images/journey.svg"

JSON = "-H 'Content-Type: application/json'"

# Without the web font that rich names: a forge's page shows no font of another host.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: arial, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    """Play the commands, and write the picture of them."""
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=132, file=nowhere, force_terminal=True)
        person = '{"name": "Ada King", "email": "ada@example.com"}'
        user = _run(console, f"curl -s localhost:3000/users {JSON} -d '{person}'")["userId"]
        placed = f'{{"userId": "{user}", "item": "Laptop", "price": 1249.90}}'
        order = _run(console, f"curl -s localhost:3000/orders {JSON} -d '{placed}'")["orderId"]
        _run(console, f"curl -s localhost:3000/queries/orders/{order}")
        _show(console, f"python -m eventcore trace {order}")
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(
            console.export_svg(title="An order travels", code_format=SVG, unique_id="journey")
        )


def _run(console: Console, command: str) -> dict[str, str]:
    """Shows a command, with a line's end where it is long, and its answer; returns the answer."""
    answer: dict[str, str] = json.loads(_show(console, command))
    return answer


def _show(console: Console, command: str) -> str:
    console.print(
        Text.assemble(("$ ", "bold green"), (command.replace(" -d ", " \\\n    -d "), "bold"))
    )
    inside = [sys.executable, "-m", "local.inside", "order-service", "sh", "-c", command]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"make pictures: {command}: {done.stderr.strip()}. Is `make run` running?")
    console.print(Text.from_ansi(done.stdout.strip()))
    console.print()
    return done.stdout


if __name__ == "__main__":
    main()
