// Draws the cards of a gallery as one scrolls.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const [grid, end, search, order, count] = ["grid", "end", "search", "order", "count"].map((id) => document.getElementById(id));
const folder = read("folder");
const cards = read("cards").slice(0, -1); // the last is a null, so that every line before it ends alike
const address = (image) => (image.startsWith("data:") ? image : folder + image);
const PAGE = 60; // cards drawn at once

cards.forEach((card) => {
  card.text = [card.name, card.caption, card.error, ...(card.captions ?? [])].join("\n");
  card.text = folded(card.text);
});
const score = (card, missing) => card.score ?? missing;
const clip = (card, missing) => card.clip ?? missing;
const size = (card, missing) => (card.caption == null ? missing : card.caption.length);
const trouble = (card) => (card.error ? 0 : card.ended === false ? 1 : 2);
const ORDERS = {
  given: null,
  name: (a, b) => collator.compare(a.name, b.name),
  worst: (a, b) => score(a, 9) - score(b, 9),
  best: (a, b) => score(b, -1e9) - score(a, -1e9),
  "clip-worst": (a, b) => clip(a, 9) - clip(b, 9),
  "clip-best": (a, b) => clip(b, -1) - clip(a, -1),
  shortest: (a, b) => size(a, 1e9) - size(b, 1e9),
  longest: (a, b) => size(b, -1) - size(a, -1),
  trouble: (a, b) => trouble(a) - trouble(b) || score(a, 9) - score(b, 9),
};

function captionOf(card) {
  if (card.caption == null) return make("span", "caption bad", card.error ?? "");
  return wordLine(card.caption, card.heat);
}

function cardOf(card) {
  const picture = make("div", "picture");
  if (card.image) {
    const image = make("img");
    image.loading = "lazy";
    image.alt = card.caption ?? card.name;
    image.src = address(card.image);
    picture.append(image);
  }
  const name = make("span", "", card.name);
  name.dir = "auto";
  const notes = make("span");
  if (card.ended === false) notes.append(make("span", "bad", "not ended "));
  if (card.verdict != null) notes.append(make("span", card.verdict ? "good" : "bad", card.verdict ? "✓ right " : "✗ wrong "));
  if (card.score != null) {
    const score = make("span", "", card.score.toFixed(3));
    score.title = "mean log-probability of a token, nats";
    notes.append(score);
  }
  if (card.clip != null) {
    const fit = make("span", "", ` CLIPScore ${(100 * card.clip).toFixed(1)}`);
    fit.title = "CLIPScore: how well the caption fits the image, from 0 to 250";
    notes.append(fit);
  }
  const text = make("figcaption", "", captionOf(card));
  if (card.caption != null && card.error) text.append(make("span", "bad", card.error));
  if (card.captions) text.append(listed(`${card.captions.length} captions`, card.captions));
  if (card.references) text.append(listed(card.references.length === 1 ? "1 reference" : `${card.references.length} references`, card.references));
  text.append(make("span", "meta", name, notes));
  const figure = make("figure", "card", picture, text);
  figure.card = card;
  return figure;
}

// ---- searching, sorting, scrolling

if (cards.some((card) => card.clip != null)) {
  const worst = [...order.options].find((option) => option.value === "worst");
  for (const [value, text] of [["clip-worst", "CLIPScore, worst first"], ["clip-best", "CLIPScore, best first"]]) {
    order.insertBefore(new Option(text, value), worst);
  }
}

let chosen = cards;
let drawn = 0;

function more() {
  const next = chosen.slice(drawn, drawn + PAGE);
  drawn += next.length;
  grid.append(...next.map(cardOf));
}

function choose() {
  const terms = folded(search.value).split(/\s+/);
  chosen = cards.filter((card) => terms.every((term) => card.text.includes(term)));
  if (ORDERS[order.value]) chosen.sort(ORDERS[order.value]);
  const all = cards.length.toLocaleString("en");
  count.textContent = chosen.length === cards.length ? `${all} images` : `${chosen.length.toLocaleString("en")} of ${all} images`;
  grid.replaceChildren();
  drawn = 0;
  more();
  watch.unobserve(end); // observe again: reports again if the end is still in view
  watch.observe(end);
}

const watch = new IntersectionObserver(
  (entries) => {
    if (entries.some((entry) => entry.isIntersecting) && drawn < chosen.length) {
      more();
      watch.unobserve(end);
      watch.observe(end);
    }
  },
  { rootMargin: "1500px" },
);
search.addEventListener("input", choose);
order.addEventListener("change", choose);

// ---- where the model looked

let shown = null;

function clear() {
  shown?.classList.remove("shown");
  shown = null;
  grid.querySelectorAll("canvas").forEach((canvas) => canvas.remove());
}

async function show(word) {
  if (word === shown) return;
  clear();
  shown = word;
  word.classList.add("shown");
  const figure = word.closest(".card");
  const image = figure.querySelector("img");
  const { heat } = figure.card;
  const strip = new Image();
  strip.src = address(heat.image);
  await Promise.all([strip.decode(), image.decode()]);
  if (word !== shown) return; // another word was chosen meanwhile
  image.after(heatOver(image, strip, Number(word.dataset.index), heat));
}

for (const kind of ["pointerover", "focusin", "click"]) {
  document.addEventListener(kind, (event) => {
    const word = event.target.closest?.(".word");
    if (word) show(word);
    else if (kind !== "focusin") clear();
  });
}
document.addEventListener("focusout", clear);
document.getElementById("hint").hidden = !cards.some((card) => card.heat);
choose();
