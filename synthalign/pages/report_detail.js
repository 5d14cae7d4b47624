// One answer in full: the image, the question and its truth, both replies with their differences and verdicts.

const VERDICTS = { 1: ["right", "won"], 0: ["wrong", "lost"], "?": ["unjudged", "wait"], "-": ["not asked", "soft"] };
const APART = ["reply", "truncated"]; // of an answer: shown in their own places

/** Write a truth or a part of a verdict as text. */
function plain(value) {
  if (Array.isArray(value)) return value.length ? value.map(plain).join(", ") : "none";
  if (value !== null && typeof value === "object") return Object.entries(value).map(([key, part]) => `${key}: ${plain(part)}`).join("\n");
  return value === null ? "none" : typeof value === "number" ? digits(value) : String(value);
}

function image(row) {
  const url = thumbOf(row);
  return el("figure", {}, url ? el("img", { src: url, alt: "the image that the question is about", on: { load: (event) => event.target.classList.toggle("tiny", event.target.naturalWidth < 64) } })
    : el("div", { class: "blank" }, document.readyState === "loading" ? "The page is still loading…" : "This image is not on the page."));
}

function verdict(letter) {
  const [name, style] = VERDICTS[letter];
  return el("span", { class: `flag ${style}` }, name);
}

/** Return what the evaluation read out of an answer, as it names it. */
function readings(answer, margin) {
  const parts = Object.entries(answer).filter(([key]) => !APART.includes(key)).map(([key, value]) => [key.replaceAll("_", " "), plain(value)]);
  if (known(margin)) parts.push(["margin of yes", `${digits(margin)} nats`]);
  return parts.length ? el("dl", { class: "readings" }, parts.map(([name, value]) => el("div", { class: value.length > 60 ? "long" : "" }, el("dt", {}, name), el("dd", { dir: "auto" }, value)))) : null;
}

function box(more, place, words, common) {
  const answer = more.answers[more.at[place]];
  return el("section", { class: `side ${VERDICTS[current.verdicts[place]][1]}` }, el("h3", {}, compared[place].label, " ", verdict(current.verdicts[place]), answer && answer.truncated ? el("span", { class: "flag wait" }, "truncated") : null),
    answer ? el("div", { class: "said", dir: "auto" }, words.length ? marked(words, common, "mark") : "(empty)") : el("p", { class: "legend" }, "The question was not asked."),
    answer ? readings(answer, more.margins && more.margins[place]) : null);
}

function boxes(more) {
  const places = first === second ? [first] : [first, second];
  const words = places.map((place) => wordsOf((more.answers[more.at[place]] || { reply: "" }).reply));
  const both = places.length > 1 && words.every((some) => some.length), common = both ? compareWords(...words) : null;
  return el("div", { class: "sides" }, places.map((place, n) => box(more, place, words[n], common && common[n])));
}

/** List all evaluations in between, where there are some: since when is it so? */
function course(row, more) {
  if (compared.length < 3) return [];
  const line = (one, n) => {
    const same = n > 0 && more.at[n] === more.at[n - 1];
    return el("tr", {}, el("th", { scope: "row" }, one.label), el("td", {}, verdict(row.verdicts[n])),
      el("td", { class: "text" }, same ? el("span", { class: "soft" }, "as before") : el("div", { class: "said", dir: "auto" }, (more.answers[more.at[n]] || { reply: "–" }).reply || "(empty)")));
  };
  return [el("h3", {}, "At every evaluation"), el("table", { class: "course" }, el("thead", { class: "heard" }, el("tr", {}, ["evaluation", "verdict", "reply"].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, compared.map(line)))];
}

function paintDetail() {
  const row = current, more = row && read(`r${row.number}`);
  if (!more) {
    const nothing = rows.length ? "The page is still loading…" : "Every answer was right every time, or none was saved: there is nothing to list.";
    find("detail").replaceChildren(el("p", { class: "empty" }, nothing));
    return;
  }
  const name = nameOf(changeOf(row.verdicts)), kind = names.kinds[row.kind];
  find("detail").replaceChildren(
    el("div", { class: "top" },
      el("button", { class: "back", type: "button", on: { click: close } }, "Back to the list"),
      el("h2", {}, el("a", { href: `#${encodeURIComponent(row.id)}`, title: "link to this answer" }, row.id)),
      el("span", { class: classOf(name) }, name),
      kind ? el("span", { class: "soft" }, kind) : "",
      el("div", { class: "steps" },
        el("button", { type: "button", id: "back-one", title: "arrow left", on: { click: () => step(-1) } }, "Previous"),
        el("button", { type: "button", id: "on-one", title: "arrow right", on: { click: () => step(1) } }, "Next"))),
    el("div", { class: "asked" }, image(row), el("div", {}, el("h3", {}, "Question"), el("p", { class: "said question", dir: "auto" }, more.question.trim() || "–"),
      el("h3", {}, "Truth"), el("p", { class: "said", dir: "auto" }, plain(more.truth)))),
    boxes(more), ...course(row, more));
  find("detail").scrollTop = 0;
  steps();
}
