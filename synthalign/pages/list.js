// The list: which rows are shown, and of these only those in view are in the document. The page's own scripts say what
// fits the tools (`fitting`, `sorted`), what a search reads (`searchable`) and what a line shows (`lineOf`, `pictureOf`).

const searched = []; // by row, in small letters
function textOf(row) {
  if (searched[row.number] === undefined) searched[row.number] = searchable(row).join("\n").toLowerCase();
  return searched[row.number];
}

let shown = rows, turn = 0;

/** Show the rows that fit the tools. A search goes through them in slices, so that the page stays awake. */
async function choose(keep) {
  const own = ++turn;
  const words = find("search").value.trim().toLowerCase();
  let some = fitting();
  if (words) {
    find("count").textContent = "searching…";
    await complete;
    const found = [];
    for (let start = 0; start < some.length; start += 400) {
      found.push(...some.slice(start, start + 400).filter((row) => textOf(row).includes(words)));
      if (start % 2000 === 0) await new Promise((resume) => setTimeout(resume));
      if (own !== turn) return; // something else is asked for by now
    }
    some = found;
  }
  shown = sorted(some);
  find("count").textContent = shown.length === rows.length ? `${count(rows.length)} ${NOUN}` : `${count(shown.length)} of ${count(rows.length)} ${NOUN}`;
  find("rows-shown").style.height = `${shown.length * ROW}px`;
  if (!keep && shown.length) select(shown[0], { quiet: true });
  paintRows();
  steps();
}

const thumbs = new Map(); // the last few hundred
function imageURL(base64) {
  return `data:image/${base64.startsWith("/9j/") ? "jpeg" : "png"};base64,${base64}`;
}
function thumbOf(row) {
  if (!thumbs.has(row.picture)) {
    const image = pictureOf(row);
    if (image === null && !find(`i${row.picture}`)) return null; // the page is still loading, or has no image
    if (thumbs.size > 300) thumbs.delete(thumbs.keys().next().value);
    thumbs.set(row.picture, image && imageURL(image));
  }
  return thumbs.get(row.picture);
}

let current = null;

function paintRows() {
  const list = find("list"), from = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const upto = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  const made = [];
  for (let place = from; place < upto; place++) {
    const row = shown[place], url = thumbOf(row), said = lineOf(row);
    const line = el("div", { class: "row", role: "option", id: `o${row.number}`, "aria-selected": String(row === current), "aria-setsize": shown.length, "aria-posinset": place + 1, on: { click: () => select(row, { open: true }) } },
      url ? el("img", { src: url, alt: "" }) : el("i", { class: "blank" }),
      el("b", {}, row.id), el("span", { class: said.markClass }, said.mark), el("p", { dir: "auto" }, said.text));
    line.style.top = `${place * ROW}px`;
    made.push(line);
  }
  find("rows-shown").replaceChildren(...(made.length ? made : [el("p", { class: "empty" }, "Nothing fits. Widen the filters or the search.")]));
  if (current) list.setAttribute("aria-activedescendant", `o${current.number}`);
}

function reveal() {
  const list = find("list"), top = shown.indexOf(current) * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

/** Make a row the current one. ``open`` shows it on a narrow screen, ``quiet`` leaves the address alone. */
function select(row, { open = false, quiet = false } = {}) {
  current = row;
  if (!quiet) history.replaceState(null, "", `#${encodeURIComponent(row.id)}`);
  if (open) document.body.classList.add("reading");
  reveal();
  paintRows();
  paintDetail();
}

function step(by) {
  const place = shown.indexOf(current) + by;
  if (shown.length) select(shown[Math.max(0, Math.min(shown.length - 1, place))]);
}

function steps() {
  const place = shown.indexOf(current);
  if (!find("back-one")) return;
  find("back-one").disabled = place <= 0;
  find("on-one").disabled = place >= shown.length - 1;
}

function close() {
  document.body.classList.remove("reading");
  find("list").focus();
}
