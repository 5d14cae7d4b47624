// The list: of all rows that are shown, only those in view are in the document.

const thumbs = new Map(); // the last few hundred
function imageURL(base64) {
  return `data:image/${base64.startsWith("/9j/") ? "jpeg" : "png"};base64,${base64}`;
}
function thumbOf(row) {
  if (!thumbs.has(row.picture)) {
    const picture = read(`i${row.picture}`);
    if (!picture) return null;
    const image = picture.best === null ? null : picture.candidates[picture.best].image;
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
    const row = shown[place], url = thumbOf(row);
    const right = row.pending || (row.reason !== null ? names.reasons[row.reason] : row.margin === null ? "pair" : `+${digits(row.margin)}`);
    const line = el("div", { class: "row", role: "option", id: `o${row.number}`, "aria-selected": String(row === current), "aria-setsize": shown.length, "aria-posinset": place + 1, on: { click: () => select(row, { open: true }) } },
      url ? el("img", { src: url, alt: "" }) : el("i", { class: "blank" }),
      el("b", {}, row.id), el("span", { class: kind(row) }, right), el("p", { dir: "auto" }, row.question || "(no question yet)"));
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
