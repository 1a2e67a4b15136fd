// The review page. The server's rows of actions are the only state: a caption is shown as accepted, edited or rejected when the
// server has answered that the action is on its disk, and every tab applies the same rows in the same order.
const element = (id) => document.getElementById(id);
const [search, filter, order, count, list, rows, notice, picture, edit] =
  ["search", "filter", "order", "count", "list", "rows", "notice", "picture", "edit"].map(element);
const ROW = 84; // pixels, as in the style
const SPARE = 6; // rows drawn beyond the edges
const POLL = 2000; // milliseconds between looks for the rows of other tabs
const WORDS = { accept: "accepted", edit: "edited", reject: "rejected" };

let items = []; // as the server lists them, with `actions`: those that stand, the last of which counts
let version = "";
let seen = 0; // rows of the file that this page has applied
let reading = null;
let alike = null; // groups of pictures that are nearly the same
let chosen = []; // numbers of items, as filtered and ordered
let here = 0; // place in `chosen`
const waiting = []; // actions that the server has not confirmed, in order
const mine = []; // numbers of the items that this tab acted on, for undo
let sending = false;

const standing = (item) => item.actions.at(-1);
// The text as it will be when all that waits is kept, which an action that follows at once is about.
function said(item) {
  const stack = item.waiting > 0 ? [...item.actions] : item.actions;
  for (const act of item.waiting > 0 ? waiting : []) {
    if (!act.items.includes(item.number)) continue;
    if (act.action === "undo") stack.pop();
    else stack.push(act);
  }
  return stack.at(-1)?.text ?? item.caption;
}
const current = () => items[chosen[here]];
const address = (kind, item) => `${kind}/${version}/${item.picture}`;

// ---- talking to the server

async function ask(path, options) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  if (!answer.ok) throw Object.assign(new Error(await answer.text()), { status: answer.status });
  return answer.json();
}

function tell(text) {
  notice.hidden = !text;
  notice.textContent = text ?? "";
}

function apply(answer) {
  if (answer.version !== version) throw Object.assign(new Error("The captions have changed; load the page again."), { status: 409 });
  if (reading !== null && answer.reading !== reading) { // another file under this name
    items.forEach((item) => { item.actions = []; });
    seen = 0;
    reading = answer.reading;
    if (answer.start > 0) return catchUp();
  }
  reading = answer.reading;
  const changed = new Set();
  answer.rows.slice(seen - answer.start).forEach(([number, action, text, time]) => {
    seen += 1;
    if (number < 0) return;
    if (action === "undo") items[number].actions.pop();
    else items[number].actions.push({ action, text, time });
    changed.add(number);
  });
  if (answer.near && !alike) {
    alike = new Map();
    answer.near.forEach((group) => group.forEach((number) => alike.set(number, group)));
    if (chosen.length) showNear(current());
  }
  if (changed.size) {
    counted();
    draw(true);
    if (chosen.length && changed.has(chosen[here]) && edit.hidden) show();
  }
}

async function catchUp() {
  const before = seen;
  const answer = await ask(`rows/${seen}`);
  if (seen === before) await apply(answer);
}

// One after another, so that they are kept in the order in which they were taken.
async function send() {
  if (sending) return;
  sending = true;
  try {
    while (waiting.length) {
      const act = waiting[0];
      if (act.doubtful) { // the server may have kept it, and died before it could say so
        const from = seen;
        await catchUp();
        act.doubtful = false;
        const last = standing(items[act.items[0]]);
        const kept = act.action === "undo" ? (last?.time ?? "") !== act.before : last && last.action === act.action && last.text === act.text;
        if (seen > from && kept) {
          waiting.shift();
          act.items.forEach((number) => { items[number].waiting -= 1; });
          continue;
        }
      }
      const body = JSON.stringify({ version, seen, items: act.items, action: act.action, text: act.text });
      const answer = await ask("act", { method: "POST", headers: { "content-type": "application/json" }, body });
      waiting.shift();
      act.items.forEach((number) => { items[number].waiting -= 1; });
      await apply(answer);
      tell(answer.done ? null : "Another tab has changed this caption; nothing was undone.");
    }
  } catch (error) {
    const act = waiting[0];
    if (error.status === 409) tell(error.message);
    else if (act && error.status && ![403, 404].includes(error.status)) { // the server has answered, and refuses
      waiting.shift();
      act.items.forEach((number) => { items[number].waiting -= 1; });
      tell(`Not kept: ${error.message}`);
    } else {
      if (act) act.doubtful = true;
      tell(
        waiting.length
          ? `${waiting.length} not kept yet: the server does not answer. It is tried again; if toolkit review was started anew, open its new address.`
          : "The server does not answer.",
      );
      setTimeout(send, 2000);
    }
  }
  sending = false;
  draw(true);
}

function take(action, text = null) {
  const item = current();
  if (!item) return;
  let numbers = [chosen[here]];
  if (element("all").checked && !item.single) numbers = [...new Set([...numbers, ...nearItems(item)])];
  element("all").checked = false;
  mine.push(numbers);
  push(numbers, action, text);
  go(here + 1);
}

function push(numbers, action, text) {
  numbers.forEach((number) => { items[number].waiting = (items[number].waiting ?? 0) + 1; });
  waiting.push({ items: numbers, action, text, before: standing(items[numbers[0]])?.time ?? "" });
  draw(true);
  send();
}

function undo() {
  const numbers = mine.pop() ?? (current() && standing(current()) ? [chosen[here]] : null);
  if (!numbers) return;
  push(numbers, "undo", null);
  const place = chosen.indexOf(numbers[0]);
  if (place >= 0) go(place);
}

// ---- which captions, in which order

const FILTERS = { todo: ["to do", (item) => !standing(item)], all: ["all", () => true] };
Object.entries(WORDS).forEach(([action, word]) => { FILTERS[action] = [word, (item) => standing(item)?.action === action]; });
const size = (item, missing) => (item.caption == null ? missing : item.caption.length);
const value = (given) => given ?? 1e9;
const ORDERS = {
  weakest: (a, b) => b.weakness - a.weakness || a.number - b.number,
  given: (a, b) => a.number - b.number,
  name: (a, b) => a.place - b.place,
  score: (a, b) => value(a.score) - value(b.score) || a.number - b.number,
  agreement: (a, b) => value(a.agreement) - value(b.agreement) || a.number - b.number,
  shortest: (a, b) => size(a, 1e9) - size(b, 1e9) || a.number - b.number,
  longest: (a, b) => size(b, -1) - size(a, -1) || a.number - b.number,
};

function choose() {
  const terms = folded(search.value).split(/\s+/).filter(Boolean);
  const fits = FILTERS[filter.value][1];
  const at = chosen[here];
  const found = items.filter((item) => {
    if (!fits(item)) return false;
    if (!terms.length) return true;
    item.folded ??= folded([item.id, item.caption, item.error, ...(item.captions ?? [])].join("\n"));
    const text = standing(item)?.text ? `${item.folded}\n${folded(standing(item).text)}` : item.folded;
    return terms.every((term) => text.includes(term));
  });
  chosen = found.sort(ORDERS[order.value]).map((item) => item.number);
  counted();
  list.scrollTop = 0;
  go(Math.max(0, chosen.indexOf(at)), true);
}

let tallied = 0;
function counted() {
  tallied = items.reduce((sum, item) => sum + (standing(item) ? 1 : 0), 0);
  const shown = chosen.length === items.length ? "" : `${chosen.length.toLocaleString("en")} shown, `;
  count.textContent = `${shown}${tallied.toLocaleString("en")} of ${items.length.toLocaleString("en")} reviewed`;
}

// ---- the list, of which only what is in sight is drawn

const pool = new Map(); // place -> its row
let settled = 0;

function draw(fresh = false) {
  rows.style.height = `${chosen.length * ROW}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
  const last = Math.min(chosen.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
  for (const [place, row] of pool) {
    if (place < first || place >= last || fresh) {
      row.remove();
      pool.delete(place);
    }
  }
  for (let place = first; place < last; place += 1) {
    if (pool.has(place)) continue;
    const row = rowOf(place);
    pool.set(place, row);
    rows.append(row);
  }
  clearTimeout(settled); // images that are only scrolled past are not asked for
  settled = setTimeout(() => {
    for (const row of pool.values()) {
      const image = row.querySelector("img");
      if (image.dataset.from) {
        image.src = image.dataset.from;
        delete image.dataset.from;
      }
    }
  }, fresh ? 0 : 90);
}

function rowOf(place) {
  const item = items[chosen[place]];
  const image = make("img");
  image.alt = "";
  image.dataset.from = address("thumb", item);
  const text = make("span", "said", said(item) ?? item.error ?? "");
  const name = make("span", "state", item.id);
  text.dir = name.dir = "auto";
  const stands = standing(item)?.action;
  const state = item.waiting > 0 ? "waiting" : stands;
  const note = make("span", `state ${state ?? ""}`, item.waiting > 0 ? "not kept yet …" : stands ? WORDS[stands] : notes(item));
  const row = make("div", place === here ? "row here" : "row", image, make("div", "", text, note, name));
  row.style.transform = `translateY(${place * ROW}px)`;
  row.role = "option";
  row.ariaSelected = String(place === here);
  row.dataset.place = place;
  return row;
}

const notes = (item) => [...(item.signs ?? []), item.score == null ? null : item.score.toFixed(3)].filter(Boolean).join(", ");

list.addEventListener("scroll", () => requestAnimationFrame(() => draw()), { passive: true });
list.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (row) go(Number(row.dataset.place));
});
new ResizeObserver(() => draw()).observe(list);

// ---- the caption under review

function go(place, fresh = true) {
  here = Math.min(Math.max(place, 0), Math.max(chosen.length - 1, 0));
  const top = here * ROW;
  if (top < list.scrollTop || top + ROW > list.scrollTop + list.clientHeight) {
    list.scrollTop = Math.max(0, top - list.clientHeight / 2 + ROW / 2);
  }
  draw(fresh);
  show();
}

function show() {
  clear();
  edit.hidden = true;
  const item = current();
  element("stage").hidden = !item;
  if (!item) return;
  const from = address("image", item);
  if (picture.getAttribute("src") !== from) picture.src = from;
  picture.alt = said(item) ?? item.id;
  const stands = standing(item);
  const text = said(item);
  const line = text == null ? make("span", "caption bad", item.error ?? "") : wordLine(text, item.heat?.caption === text ? item.heat : null);
  const parts = [line];
  if (stands?.text != null && stands.text !== item.caption && item.caption != null) parts.push(make("span", "gone", item.caption));
  element("text").replaceChildren(...parts);
  const facts = [make("li", "", make("b", "", item.id))];
  if (stands) facts.push(make("li", `state ${stands.action}`, WORDS[stands.action]));
  (item.signs ?? []).forEach((sign) => facts.push(make("li", "sign", sign)));
  if (item.score != null) facts.push(make("li", "", "score ", make("b", "", item.score.toFixed(3))));
  if (item.agreement != null) facts.push(make("li", "", "agreement with references ", make("b", "", item.agreement.toFixed(2))));
  facts[0].dir = "auto";
  element("facts").replaceChildren(...facts);
  element("choices").replaceChildren(...(item.captions ?? []).map((caption, index) => choice(item, caption, index)));
  element("more").replaceChildren(...(item.references ? [referencesOf(item.references)] : []), ...others(item));
  showNear(item);
  const next = items[chosen[here + 1]];
  if (next) new Image().src = address("image", next);
}

function choice(item, caption, index) {
  const button = make("button", said(item) === caption ? "choice standing" : "choice", caption, ...(index < 9 ? [make("kbd", "", index + 1)] : []));
  button.type = "button";
  button.dir = "auto";
  button.addEventListener("click", () => take("accept", caption));
  return button;
}

function referencesOf(references) {
  const found = listed(references.length === 1 ? "1 reference" : `${references.length} references`, references);
  found.open = true;
  return found;
}

let ofPicture = new Map(); // picture -> the numbers of its items
function others(item) { // the other captions of an image whose captions are judged one by one
  const found = item.single ? ofPicture.get(item.picture).filter((number) => number !== item.number) : [];
  if (!found.length) return [];
  const details = listed(`its other captions: ${found.length}`, found.map((number) => said(items[number]) ?? ""));
  details.open = true;
  return [details];
}

const nearItems = (item) => (alike?.get(item.picture) ?? []).flatMap((number) => ofPicture.get(number) ?? []);

function showNear(item) {
  const group = (alike?.get(item.picture) ?? []).filter((number) => number !== item.picture);
  element("near").hidden = !group.length;
  element("all").parentElement.hidden = Boolean(item.single);
  element("alike").replaceChildren(
    ...group.slice(0, 50).map((number) => {
      const other = items[ofPicture.get(number)[0]];
      const image = make("img");
      image.loading = "lazy";
      image.alt = "";
      image.src = address("thumb", other);
      const button = make("button", "", image, said(other) ?? other.error ?? "");
      button.type = "button";
      button.dir = "auto";
      button.addEventListener("click", () => {
        const place = chosen.indexOf(other.number);
        if (place >= 0) go(place);
      });
      return button;
    }),
  );
}

function accept() {
  const item = current();
  if (item && said(item) != null) take("accept", said(item));
}

function startEdit() {
  const item = current();
  if (!item) return;
  edit.hidden = false;
  edit.value = said(item) ?? "";
  edit.focus();
  edit.select();
}

function endEdit(keep) {
  const text = edit.value.split(/\s+/).filter(Boolean).join(" ");
  if (keep && !text) {
    tell("A caption has words; reject the image instead.");
    return;
  }
  edit.hidden = true;
  edit.blur();
  if (keep) take("edit", text);
}

const DO = { accept, edit: () => (edit.hidden ? startEdit() : endEdit(true)), reject: () => take("reject"), next: () => go(here + 1), back: () => go(here - 1), undo };
element("buttons").addEventListener("click", (event) => DO[event.target.closest("button")?.dataset.do]?.());

const KEYS = {
  a: "accept", e: "edit", r: "reject", u: "undo", j: "next", ArrowRight: "next", ArrowDown: "next", n: "next", k: "back", ArrowLeft: "back", ArrowUp: "back", p: "back",
};
document.addEventListener("keydown", (event) => {
  if (event.target === edit) {
    if (event.key === "Enter" && !event.isComposing) endEdit(true);
    else if (event.key === "Escape") endEdit(false);
    else return;
    event.preventDefault();
    return;
  }
  if (event.target === search && event.key === "Escape") search.blur();
  if (event.target.matches("input:not([type=checkbox]), select, textarea") || element("help").open) return;
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  if ((event.ctrlKey || event.metaKey) && event.key === "z") undo();
  else if (!plain || (event.repeat && !["next", "back"].includes(KEYS[event.key]))) return;
  else if (KEYS[event.key]) DO[KEYS[event.key]]();
  else if (event.key === "Home") go(0);
  else if (event.key === "End") go(chosen.length - 1);
  else if (event.key === "/") search.focus();
  else if (event.key === "?") element("help").showModal();
  else if (event.key === "g") element("all").checked = !element("all").checked;
  else if (/^[1-9]$/.test(event.key) && current()?.captions?.[event.key - 1] != null) take("accept", current().captions[event.key - 1]);
  else return;
  event.preventDefault();
});
element("keys").addEventListener("click", () => element("help").showModal());
search.addEventListener("input", choose);
for (const control of [filter, order]) {
  control.addEventListener("change", () => {
    choose();
    control.blur();
  });
}
window.addEventListener("beforeunload", (event) => {
  if (waiting.length || (!edit.hidden && edit.value !== (said(current()) ?? ""))) event.preventDefault();
});

// ---- where the model looked

let pointed = null;

function clear() {
  pointed?.classList.remove("shown");
  pointed = null;
  element("view").querySelectorAll("canvas").forEach((canvas) => canvas.remove());
}

async function point(word) {
  if (word === pointed) return;
  clear();
  pointed = word;
  word.classList.add("shown");
  const item = current();
  const strip = new Image();
  strip.src = address("heat", item);
  await Promise.all([strip.decode(), picture.decode()]);
  if (word === pointed) picture.after(heatOver(picture, strip, Number(word.dataset.index), item.heat));
}

for (const kind of ["pointerover", "focusin", "click"]) {
  document.addEventListener(kind, (event) => {
    const word = event.target.closest?.(".word");
    if (word) point(word);
    else if (kind !== "focusin") clear();
  });
}

// ---- the start

async function look() {
  if (document.visibilityState === "visible" && !sending && !waiting.length) {
    try {
      await catchUp();
      if (notice.textContent.startsWith("The server")) tell(null);
    } catch (error) {
      tell(error.status === 409 ? error.message : "The server does not answer; if toolkit review was started anew, open its new address.");
    }
  }
}

async function poll() {
  await look();
  setTimeout(poll, alike ? POLL : POLL / 3);
}

async function start() {
  const listing = await ask("items");
  version = listing.version;
  items = listing.items;
  items.forEach((item, number) => {
    item.number = number;
    item.actions = [];
    if (!ofPicture.has(item.picture)) ofPicture.set(item.picture, []);
    ofPicture.get(item.picture).push(number);
  });
  [...items].sort((a, b) => collator.compare(a.id, b.id)).forEach((item, place) => { item.place = place; });
  const signs = new Set(items.flatMap((item) => item.signs ?? []));
  signs.forEach((sign) => { FILTERS[sign] = [sign, (item) => item.signs?.includes(sign)]; });
  if (items.some((item) => item.error)) FILTERS.error = ["without a caption", (item) => item.error != null];
  filter.replaceChildren(...Object.entries(FILTERS).map(([name, [text]]) => {
    const option = make("option", "", text);
    option.value = name;
    return option;
  }));
  const known = { score: "score", agreement: "agreement" };
  [...order.options].forEach((option) => { if (known[option.value] && !items.some((item) => item[option.value] != null)) option.remove(); });
  filter.value = "all";
  await catchUp();
  filter.value = items.some((item) => standing(item)) ? "todo" : "all";
  choose();
  document.body.dataset.ready = "yes";
  window.addEventListener("focus", look);
  poll();
}

start().catch((error) => tell(`The page can't be shown: ${error.message}`));
