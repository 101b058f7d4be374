"""A real headless Chromium for tests: the system's or, where there is none, Debian's package, unpacked once into the cache with nothing installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from anymal.data.asset_folders import cache_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parent.parent
PACKAGES = ("chromium-headless-shell", "chromium-common", "fonts-dejavu-core")
"""chromium-common, whose files must lie beside the program, is named so that it is unpacked where the system has it too."""
NAMES = ("chromium-headless-shell", "chromium")
"""Of the program, on the PATH and below usr/lib/chromium."""
SECONDS_TO_UNPACK = 420
ARGUMENTS = ("--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required")
"""Containers have a /dev/shm of 64 MB, which is too small; a test presses no key before it plays a sound."""
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
<dir>/usr/share/fonts</dir><dir>{root}/usr/share/fonts</dir><cachedir>{root}/font-cache</cachedir>
<alias><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
<alias><family>serif</family><prefer><family>DejaVu Serif</family></prefer></alias>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""
LOOK = """() => {
  const shown = e => e.getClientRects().length > 0 && getComputedStyle(e).visibility === 'visible' && !e.closest('.heard');
  const some = (selector, bad) => [...document.querySelectorAll(selector)].filter(bad).map(e => e.outerHTML.slice(0, 160));
  const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const opaque = colour => numbers(colour).length < 4 || numbers(colour)[3] === 1;
  const background = e => getComputedStyle(e).backgroundColor;
  const behind = e => !e ? 'rgb(255, 255, 255)' : opaque(background(e)) ? background(e) : behind(e.parentElement);
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const contrast = e => ratio(light(getComputedStyle(e).color), light(behind(e)));
  const levels = [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(e => +e.tagName[1]);
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  const headless = t => !t.caption || !t.tHead || [...t.tHead.rows[0].cells].some(c => c.scope !== 'col' || !shown(c))
    || [...t.tBodies[0].rows].some(r => r.cells[0].scope !== 'row' || r.cells.length !== t.tHead.rows[0].cells.length);
  return {
    overflow: Math.max(0, document.documentElement.scrollWidth - innerWidth),
    sticking_out: some('body *', e => shown(e) && !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1),
    broken_images: some('img', i => !(i.complete && i.naturalWidth && i.alt)),
    faint_text: some('body *', e => shown(e) && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && contrast(e) < 4.5),
    heading_jumps: levels.filter((l, i) => l > (i ? levels[i - 1] + 1 : 1)),
    headless_tables: some('table', headless),
    unreachable_boxes: some('.scroll', e => e.tabIndex !== 0 || !e.getAttribute('aria-label')),
    doubled_ids: ids.filter((v, i) => ids.indexOf(v) !== i),
    links_to_nowhere: some('a[href^="#"]', a => !document.getElementById(a.getAttribute('href').slice(1))),
  };
}"""


@dataclass(frozen=True)
class Chromium:
    """The program, and what its environment needs."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def launched(self) -> Iterator[Browser]:
        """A running browser, its processes ended afterwards.

        Playwright leaves an event loop running in the thread for as long as it is open, and `asyncio.run` refuses then: keep it open no longer than
        the tests of one file.
        """
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=self.path, args=list(ARGUMENTS), env={**os.environ, **self.environment})
            yield browser
            browser.close()


def find_chromium() -> Chromium:
    """The system's Chromium; without one, the package with what it depends on and this machine lacks, from the cache or from Debian's archive."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return Chromium(Path(found))
    folder = cache_folder() / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder / "root", ignore_errors=True)
            command = [ROOT / "scripts" / "unpack.sh", "--with-dependencies", folder / "root", *PACKAGES]
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS_TO_UNPACK)
            assert done.returncode == 0, done.stderr
            (folder / "complete").touch()
    return unpacked(folder / "root")


def unpacked(root: Path) -> Chromium:
    """Chromium in a folder that scripts/unpack.sh filled."""
    program = next(path for name in NAMES if (path := root / "usr/lib/chromium" / name).is_file())
    libraries = sorted({str(path.parent) for place in ("lib", "usr/lib") for path in (root / place).glob("*-linux-gnu*/**/*.so*")})
    fonts = root / "fonts.conf"
    fonts.write_text(FONTS.format(root=root), encoding="utf-8")
    return Chromium(program, {"LD_LIBRARY_PATH": ":".join(libraries), "FONTCONFIG_FILE": str(fonts)})


@contextmanager
def opened(browser: Browser, *, width: int, height: int = 900, **context: Any) -> Iterator[Page]:
    """A page of its own context (no shared cookies), closed afterwards.

    Args:
        width: of the window, in CSS pixels, as `height`.
        context: of `Browser.new_context`, such as `color_scheme="dark"`.
    """
    opened_context = browser.new_context(viewport={"width": width, "height": height}, **context)
    try:
        yield opened_context.new_page()
    finally:
        opened_context.close()


def watch(page: Page) -> list[str]:
    """A list that fills with what goes wrong in the page: errors of scripts and of the console, and requests that fail."""
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("console", lambda message: wrong.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("requestfailed", lambda request: wrong.append(f"request: {request.url[:200]}"))
    return wrong


def look(page: Page) -> dict[str, list[Any]]:
    """What is wrong with how a page stands now, by kind; kinds with nothing wrong are left out.

    Wider than the window, elements that stick out of it (but for tables in their box, class `scroll`), pictures that did not load or have no alt
    text, text of less contrast than 4.5 to 1, headings that leave a level out, tables without caption or headers, boxes that the keyboard cannot
    scroll, doubled ids, links that lead nowhere.
    """
    return {kind: found for kind, found in page.evaluate(LOOK).items() if found}
