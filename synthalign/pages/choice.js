// The tools of the gallery: which questions are shown, and in which order.

const kind = (row) => (row.pending ? "pending" : row.reason === null ? "pairs" : "dropped");
const NOUN = "questions";
const FILTERS = ["search", "outcome", "category", "responder"];

const option = (value, text) => el("option", { value }, text);
const group = (label, options) => (options.length ? el("optgroup", { label }, options) : null);

function fillTools() {
  const tallies = { reason: new Map(), pending: new Map(), refused: new Map(), category: new Map() };
  const add = (tally, value) => tally.set(value, (tally.get(value) || 0) + 1);
  let truncated = 0, drops = 0;
  for (const row of rows) {
    if (row.reason !== null) { add(tallies.reason, row.reason); drops++; }
    if (row.pending) add(tallies.pending, row.pending);
    for (const reason of row.refused) add(tallies.refused, reason);
    add(tallies.category, row.category);
    truncated += row.truncated;
  }
  const listed = (tally, prefix, label) => [...tally].sort((a, b) => b[1] - a[1]).map(([value, number]) => option(`${prefix}:${value}`, `${label(value)} (${count(number)})`));
  const reason = (n) => names.reasons[n];
  find("outcome").append(...[
    option("", `all ${count(rows.length)}`),
    option("pairs", "pairs"),
    drops ? option("dropped", `all dropped (${count(drops)})`) : null,
    group("dropped for", listed(tallies.reason, "dropped", reason)),
    group("unfinished", listed(tallies.pending, "pending", (text) => text)),
    group("with a response refused for", listed(tallies.refused, "refused", reason)),
    truncated ? option("truncated", `with a truncated response (${count(truncated)})`) : null,
  ].filter(Boolean));
  const known = [...tallies.category].filter(([value]) => value !== null).sort((a, b) => (names.categories[a[0]] < names.categories[b[0]] ? -1 : 1));
  find("category").append(option("", "all"), ...known.map(([value, number]) => option(value, `${names.categories[value]} (${count(number)})`)));
  find("category").parentElement.hidden = known.length < 2;
  const each = (prefix) => names.responders.map((name, n) => option(`${prefix}:${n}`, name));
  find("responder").append(...[option("", "all"), group("chosen", each("chosen")), group("rejected", each("rejected")), group("took part", each("any"))].filter(Boolean));
}

const tests = {
  pairs: () => (row) => kind(row) === "pairs",
  dropped: (which) => (row) => kind(row) === "dropped" && (which === undefined || row.reason === +which),
  pending: (which) => (row) => row.pending === which,
  refused: (which) => (row) => row.refused.includes(+which),
  truncated: () => (row) => row.truncated,
  chosen: (which) => (row) => row.chosen === +which,
  rejected: (which) => (row) => row.rejected === +which,
  any: (which) => (row) => row.responders.includes(+which),
};

function testOf(value) {
  if (!value) return () => true;
  const [name, which] = value.split(/:(.*)/s);
  return tests[name](which);
}

const collator = new Intl.Collator("en", { numeric: true });
const last = (value) => (value === null || value === undefined ? -Infinity : value); // rows without it come last
const orders = {
  "order": null,
  "margin-down": (row) => last(row.margin),
  "margin-up": (row) => last(row.margin === null ? null : -row.margin),
  "words-down": (row) => (row.words.length ? Math.max(...row.words) : -Infinity),
  "words-up": (row) => (row.words.length ? -Math.max(...row.words) : -Infinity),
  "longer": (row) => (row.words.length > 1 ? row.words[0] - row.words[1] : -Infinity),
  "shorter": (row) => (row.words.length > 1 ? row.words[1] - row.words[0] : -Infinity),
};

const searchable = (row) => {
  const more = read(`r${row.number}`);
  return [row.id, more.prompt, more.question, ...more.candidates.map((one) => one.text)];
};

function fitting() {
  const category = find("category").value;
  const outcome = testOf(find("outcome").value), responder = testOf(find("responder").value);
  return rows.filter((row) => outcome(row) && responder(row) && (category === "" || row.category === +category));
}

function sorted(some) {
  const order = find("sort").value;
  if (order === "id") return [...some].sort((a, b) => collator.compare(a.id, b.id));
  if (!orders[order]) return some;
  const keyed = some.map((row) => [orders[order](row), row]);
  return keyed.sort((a, b) => b[0] - a[0] || a[1].number - b[1].number).map(([, row]) => row);
}

function pictureOf(row) {
  const picture = read(`i${row.picture}`);
  return picture && (picture.best === null ? null : picture.candidates[picture.best].image);
}

function lineOf(row) {
  const right = row.pending || (row.reason !== null ? names.reasons[row.reason] : row.margin === null ? "pair" : `+${digits(row.margin)}`);
  return { mark: right, markClass: kind(row), text: row.question || "(no question yet)" };
}
