"""Write the dashboards and the alerts into the chart: `make docs`."""

from pathlib import Path

from local.panels.write import written

FILES = Path(__file__).parents[2] / "charts" / "shop" / "files"

if __name__ == "__main__":
    for name, text in written().items():
        file = FILES / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
