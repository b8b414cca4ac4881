"""How long a report takes to open in headless Chromium: cold and warm, on one core.

    python benchmarks/report_open.py studies/tiny-keep0.25/report.html [OTHER.html ...]

Cold is the first page of a new browser process with a new profile; warm is the same page opened
again in that process. Several pages take turns, so that a busy machine slows all of them alike.
Each page is opened at its top and at a link to a figure (`#parallel`), at the size of a desktop.
Times are milliseconds since the navigation began, medians of the rounds (least to most):

- text: the first paint of content;
- open: the first frame in which the page is parsed and every figure in the window is drawn;
- all: the first frame in which every figure is;
- block: the longest time for which scripts kept the page from answering;
- cpu: what all processes of the browser computed until `open`: about what `open` is on a core that
  nothing else uses. Where the machine is busy, read this one.

Frames are served by the page's main thread, so a page that is drawn but does not answer is not
open yet. Needs chromium and chromium-driver.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "review"))

from browser import Browser, started  # noqa: E402

PLACES = ("", "#parallel")
WATCH = """
  const seen = window.seen = { block: 0, from: performance.timeOrigin };
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) seen.block = Math.max(seen.block, task.duration);
  }).observe({ type: "longtask", buffered: true });
  const inWindow = (place) => {
    const box = place.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  };
  // A study of few trials has figures without a point.
  const undrawn = (place) => !place.querySelector("svg.main-svg");
  const look = () => {
    const [paint] = performance.getEntriesByName("first-contentful-paint");
    if (paint && document.readyState !== "loading") {
      const left = [...document.querySelectorAll(".plot")].filter(undrawn);
      seen.text = paint.startTime;
      // The browser goes to a linked section some frames after it has read it.
      const linked = document.querySelector(`${location.hash || "html"} .plot`);
      const there = !location.hash || !linked || inWindow(linked);
      if (there && !left.some(inWindow)) seen.open ??= performance.now();
      if (!left.length) seen.all ??= performance.now();
    }
    if (!seen.all || !seen.open) requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
"""
NAMES = ("text", "open", "all", "block", "cpu")
TICK = 1000 / os.sysconf("SC_CLK_TCK")


class Clock(threading.Thread):
    """CPU milliseconds of a browser's processes, read every few of them.

    Attributes:
        read: Pairs of wall-clock time in ms since 1970, and CPU time since the browser's start.
    """

    def __init__(self, browser: Browser):
        super().__init__(daemon=True)
        self.read: list[tuple[float, float]] = []
        self._driver = browser.driver.service.process.pid
        self._over = threading.Event()

    def __enter__(self) -> "Clock":
        self._note()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Read until the end of the ``with`` statement."""
        while not self._over.wait(0.02):
            self._note()

    def at(self, when: float) -> float:
        """Return the CPU time at the first reading after a time."""
        return next((cpu for time_, cpu in self.read if time_ >= when), self.read[-1][1])

    def _note(self) -> None:
        parents, used = {}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                parents[int(path.parent.name)] = int(fields[1])
                used[int(path.parent.name)] = TICK * (int(fields[11]) + int(fields[12]))
        found, new = set(), {self._driver}
        while new:
            new = {child for child, parent in parents.items() if parent in new}
            found |= new
        self.read.append((1000 * time.time(), sum(used[x] for x in found)))


def opened(browser: Browser, page: Path, place: str) -> dict[str, float]:
    """Open a page; return what was seen, in milliseconds."""
    browser.open("about:blank")
    with Clock(browser) as clock:
        browser.open(page.resolve().as_uri() + place)
        browser.until("return window.seen && seen.all && seen.open", seconds=60)
        # Long tasks are told a moment after they end.
        browser.driver.execute_async_script("setTimeout(arguments[0], 100)")
        found = browser.run("return seen")
    found["cpu"] = clock.at(found["from"] + found["open"]) - clock.at(found["from"])
    return {name: found[name] for name in NAMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", type=Path, nargs="+", help="reports, each an HTML file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where every single time is written too")
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    times: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for place in PLACES:
            for page in options.pages:
                # What is started inherits it; what is measured is not slowed by the measuring.
                os.sched_setaffinity(0, {max(cores)})
                with started() as browser:
                    os.sched_setaffinity(0, cores)
                    browser.before(WATCH)
                    for state in ("cold", "warm"):
                        name = f"{page}{place} {state}"
                        times.setdefault(name, []).append(opened(browser, page, place))
    for name in sorted(times):
        cells = []
        for what in NAMES:
            values = [round(x[what]) for x in times[name]]
            middle = statistics.median(values)
            cells.append(f"{what} {middle:.0f} ({min(values)}-{max(values)})")
        print(f"{name}: {', '.join(cells)} ms")
    print(f"{options.rounds} rounds, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if options.json:
        options.json.write_text(json.dumps(times, indent=1))


if __name__ == "__main__":
    main()
