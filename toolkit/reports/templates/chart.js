"use strict";
// The values of a chart under the pointer, or, where a chart has the focus, with the arrow keys. Without this script the
// chart is the same picture. What is told stands in the drawing: data-x and data-y of each line, a text for each point.

function linesOf(plot) {
  return [...plot.querySelectorAll("polyline")].map((line) => {
    const places = line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number));
    const x = line.dataset.x.split("|");
    const y = line.dataset.y.split("|");
    const tone = line.parentNode.getAttribute("class");
    return { name: line.dataset.name, tone, points: places.map(([px, py], i) => ({ px, py, x: x[i], y: y[i] })) };
  });
}

// The point of a line that is nearest to a place from left to right, in per cent; places ascend.
function nearest(points, place) {
  let low = 0;
  let high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle].px < place) low = middle;
    else high = middle;
  }
  return place - points[low].px <= points[high].px - place ? low : high;
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function hide(plot) {
  plot.querySelectorAll(".cursor, .dot, .tip").forEach((each) => each.remove());
}

function show(plot, lines, place) {
  hide(plot);
  const found = lines.map((line) => ({ ...line.points[nearest(line.points, place)], line }));
  const first = found.reduce((a, b) => (Math.abs(b.px - place) < Math.abs(a.px - place) ? b : a));
  const cursor = element("div", "cursor");
  cursor.style.left = `${first.px}%`;
  const tip = element("div", "tip");
  tip.setAttribute("role", "status");
  tip.append(element("small", "", `${plot.nextElementSibling.textContent} ${first.x}`));
  for (const point of found) {
    const dot = element("div", `dot ${point.line.tone}`);
    dot.style.left = `${point.px}%`;
    dot.style.top = `${point.py}%`;
    plot.append(dot);
    const row = element("div", point.line.tone);
    if (point.line.name) row.append(element("i"), element("span", "", point.line.name)); // no name: the only line
    if (point.x !== first.x) row.append(element("small", "", ` at ${point.x}`));
    row.append(element("b", "", point.y));
    tip.append(row);
  }
  plot.append(cursor, tip);
  const [width, middle] = [tip.offsetWidth, (first.px / 100) * plot.clientWidth];
  const left = first.px > 50 ? middle - 12 - width : middle + 12;
  tip.style.left = `${Math.max(-40, Math.min(left, plot.clientWidth + 10 - width))}px`; // within the page, on a phone too
  return first.px;
}

for (const plot of document.querySelectorAll(".plot")) {
  let lines = null; // read when they are first asked for: a page may have many
  let at = 100;
  const tell = (place) => {
    lines ??= linesOf(plot);
    at = show(plot, lines, place);
  };
  plot.tabIndex = 0;
  const point = (event) => {
    const box = plot.getBoundingClientRect();
    tell((100 * (event.clientX - box.left)) / box.width);
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", () => hide(plot));
  plot.addEventListener("blur", () => hide(plot));
  plot.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    lines ??= linesOf(plot);
    const places = [...new Set(lines.flatMap((line) => line.points.map((each) => each.px)))];
    const others = event.key === "ArrowLeft" ? places.filter((px) => px < at) : places.filter((px) => px > at);
    if (!plot.querySelector(".tip")) tell(at);
    else if (others.length) tell(event.key === "ArrowLeft" ? Math.max(...others) : Math.min(...others));
  });
}
