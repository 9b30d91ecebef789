"""Make the pictures of README.md again: `python docs/pictures.py`, about two minutes on two cores.

They show real runs of init_activation_grid on scikit-learn's digits. Needs tmux (the live table of
a terminal), chromium and playwright (everything else).

    live.png     the table while trials train
    grid.png     the heatmap of init x activation, from the report
    curves.png   mean curves with their bands, from the report
    report.png   the top of the report
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "images"
STUDY = "init_activation_grid"
COLUMNS, ROWS = 116, 16
SHELL = "tmux"
SESSION = "sweepstack-pictures"
COLOURS = 128
"""Of a picture: enough for a page, and a third of the bytes."""


def main() -> None:
    """Run the sweeps, open the report, take the pictures."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        frame = live(Path(folder))
        sweep = [str(Path(sys.executable).parent / "sweepstack"), "-m", f"+sweeps={STUDY}"]
        subprocess.run(sweep, cwd=folder, check=True)
        page = (Path(folder) / "outputs" / "reports" / f"{STUDY}.html").as_uri()
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            tab = browser.new_page(device_scale_factor=2, color_scheme="light")
            tab.set_content(terminal(frame))
            save("live", tab.locator("pre").screenshot())
            tab.set_viewport_size({"width": 860, "height": 800})
            tab.goto(page)
            count = tab.locator(".plot").count()
            tab.locator(".plot[data-state=drawn]").nth(count - 1).wait_for(state="attached")
            for name, section in (("grid", "plot-heatmap"), ("curves", "plot-mean-curves")):
                save(name, tab.locator(f"#{section} .plot").screenshot())
            tab.set_viewport_size({"width": 1200, "height": 860})
            tab.wait_for_timeout(1000)  # plots follow the width
            tab.evaluate("scrollTo(0, 0)")
            save("report", tab.screenshot())
            browser.close()


def live(folder: Path) -> str:
    """What a terminal shows in the middle of a sweep, with its colours."""
    command = f"{Path(sys.executable).parent}/sweepstack -m +sweeps={STUDY} training.max_steps=2000"
    shown = command.replace(f"{Path(sys.executable).parent}/", "")
    size = ("-x", str(COLUMNS), "-y", str(ROWS))
    subprocess.run([SHELL, "new-session", "-d", "-s", SESSION, *size, command], cwd=folder)
    try:
        for _ in range(120):
            time.sleep(1)
            given = [SHELL, "capture-pane", "-e", "-p", "-t", SESSION]
            frame = subprocess.run(given, capture_output=True, text=True, check=True).stdout
            if "best" in frame and re.search("[▁-█]{12}", frame):
                return f"$ {shown}\n{frame.rstrip()}"
        raise SystemExit(f"no live table in two minutes:\n{frame}")
    finally:
        subprocess.run([SHELL, "kill-session", "-t", SESSION], check=False)


def terminal(frame: str) -> str:
    """A frame of a terminal as a page."""
    from rich.console import Console
    from rich.terminal_theme import DEFAULT_TERMINAL_THEME
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(frame), end="")
    body = console.export_html(
        theme=DEFAULT_TERMINAL_THEME, inline_styles=True, code_format="{code}"
    )
    look = "font: 15px/1.35 'DejaVu Sans Mono', monospace; padding: 14px 18px; margin: 0;"
    frame = "border: 1px solid #d5d9de; border-radius: 8px; background: #fff; width: max-content"
    return f'<meta charset=utf-8><pre style="{look} {frame}">{body}</pre>'


def save(name: str, picture: bytes) -> None:
    """Write a picture with few colours."""
    from PIL import Image

    image: Any = Image.open(io.BytesIO(picture)).convert("RGB")
    path = FOLDER / f"{name}.png"
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
