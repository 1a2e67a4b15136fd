"""The review page with many images, in a headless Chromium: time to the first page, the longest task while scrolling, memory.

    python scripts/bench_review_page.py                    # 20,000 images; about a minute
    python scripts/bench_review_page.py --images 500       # does it run?

The images are links to 200 drawn ones. `first page` is from the start of the command to the first captions on the screen, of which
`server` is until the address is printed. `longest task` is of the browser's main thread, by its own PerformanceObserver (long
tasks are those over 50 ms), while the list jumps to its end, is scrolled through in 200 steps, searched and ordered. Memory is that of
the page's JavaScript and of the server, after the first page and after all of that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Browser

from toolkit.data.drawing import draw_sample

OBSERVE = """window.longest = 0; new PerformanceObserver((list) => list.getEntries().forEach(
  (entry) => { window.longest = Math.max(window.longest, entry.duration); })).observe({type: 'longtask', buffered: true})"""
FRAME = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)))"


def make(folder: Path, images: int) -> None:
    draw_sample(folder / "drawn", 200, 1)
    drawn = sorted((folder / "drawn" / "Images").iterdir())
    (folder / "Images").mkdir()
    with open(folder / "captions.jsonl", "w") as file:
        for i in range(images):
            name = f"{i:06d}{drawn[i % 200].suffix}"
            os.link(drawn[i % 200], folder / "Images" / name)
            row = {"image": name, "caption": f"a picture of things, number {i}", "score": -(i * 7919 % images) / images}
            file.write(json.dumps({**row, "ended": i % 97 != 0, "error": None, "width": 100, "height": 100}) + "\n")


def resident(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--near-duplicates", default="off")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as profile:
        folder = Path(name)
        make(folder, arguments.images)
        with Browser(Path(profile)) as browser:
            browser.screen(1200, 900)
            command = [sys.executable, "-m", "toolkit", "review", "captions.jsonl"]
            command += ["--near-duplicates", arguments.near_duplicates]
            started = time.monotonic()
            server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
            try:
                assert server.stderr is not None
                address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+/", line)))
                listening = time.monotonic() - started
                browser.open(address)
                browser.wait("document.querySelectorAll('.row').length > 0")
                first = time.monotonic() - started
                browser.wait("document.body.dataset.ready === 'yes'")
                time.sleep(1)
                before = browser.run("performance.memory.usedJSHeapSize") / 2**20, resident(server.pid)
                browser.run(f"(() => {{ {OBSERVE} }})()")
                loading = browser.run(f"{FRAME}.then(() => window.longest)")
                browser.run("window.longest = 0")
                browser.press("End")
                for step in range(200):
                    place = (step * 37 % 200) / 200
                    browser.run(f"(list.scrollTop = list.scrollHeight * {place}, {FRAME})")
                for term in ("number 1", "", "things 77", ""):
                    browser.run(f"(search.value = '{term}', search.dispatchEvent(new Event('input')), {FRAME})")
                for order in ("longest", "name", "weakest"):
                    browser.run(f"(order.value = '{order}', order.dispatchEvent(new Event('change')), {FRAME})")
                for _ in range(50):
                    browser.press("a")
                browser.wait("waiting.length === 0")
                browser.call("HeapProfiler.collectGarbage")
                after = browser.run("performance.memory.usedJSHeapSize") / 2**20, resident(server.pid)
                longest, elements = browser.run("window.longest"), browser.run("document.querySelectorAll('*').length")
            finally:
                server.kill()
                server.wait()
    print(f"{arguments.images} images: first page {first:.2f} s (server {listening:.2f} s)")
    print(f"longest task while loading {loading:.0f} ms, afterwards {longest:.0f} ms (0: none over 50 ms)")
    print(
        f"page {before[0]:.0f} MB before, {after[0]:.0f} MB after; {elements} elements; server {before[1]:.0f} and {after[1]:.0f} MB"
    )


if __name__ == "__main__":
    main()
