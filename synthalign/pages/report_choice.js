// The tools of the report: which answers are shown.

const NOUN = "answers";
const FILTERS = ["search", "evaluation", "change", "type"];
const FLIPPED = "made right or made wrong";

const option = (value, text) => el("option", { value }, text);

/** Offer the ways that answers changed between the two evaluations, with counts of those on the page. */
function fillChanges() {
  const before = find("change").value, counts = new Map();
  for (const row of rows) {
    const name = nameOf(changeOf(row.verdicts));
    counts.set(name, (counts.get(name) || 0) + 1);
  }
  const flips = (counts.get("made right") || 0) + (counts.get("made wrong") || 0);
  const order = ["made right", "made wrong", "wrong", "still wrong", "right", "still right", "unjudged", "not asked both times"];
  const listed = order.filter((name) => counts.has(name)).map((name) => option(name, `${name} (${count(counts.get(name))})`));
  if (flips) listed.unshift(option(FLIPPED, `${FLIPPED} (${count(flips)})`));
  const offered = [option("", `all ${count(rows.length)} that are listed`), ...listed];
  find("change").replaceChildren(...offered);
  find("change").value = offered.some((one) => one.value === before) && fillChanges.done ? before : flips ? FLIPPED : "";
  fillChanges.done = true;
}

/** Offer the types of the chosen evaluation. */
function fillTypes() {
  const chosen = find("evaluation").value, counts = new Map();
  for (const row of rows) {
    if (chosen !== "" && row.eval !== +chosen) continue;
    const key = `${row.eval}:${row.kind}`;
    counts.set(key, (counts.get(key) || 0) + 1);
  }
  const label = (key) => { const [of, kind] = key.split(":"); return chosen === "" ? `${run.evals[of].name}: ${names.kinds[kind]}` : names.kinds[kind]; };
  find("type").replaceChildren(option("", "all"), ...[...counts].map(([key, number]) => option(key, `${label(key)} (${count(number)})`)));
  find("type").parentElement.hidden = counts.size < 2;
}

function fillTools() {
  const counts = run.evals.map((_, n) => rows.filter((row) => row.eval === n).length);
  find("evaluation").append(option("", "all"), ...run.evals.map((one, n) => option(n, `${one.name} (${count(counts[n])})`)));
  find("evaluation").parentElement.hidden = run.evals.length < 2;
  find("evaluation").addEventListener("change", fillTypes);
  fillChanges();
  fillTypes();
}

const searchable = (row) => {
  const more = read(`r${row.number}`);
  return [row.id, more.question, JSON.stringify(more.truth), ...more.answers.map((one) => one.reply)];
};

function fitting() {
  const of = find("evaluation").value, change = find("change").value, type = find("type").value;
  return rows.filter((row) => {
    const name = nameOf(changeOf(row.verdicts));
    return (of === "" || row.eval === +of) && (type === "" || type === `${row.eval}:${row.kind}`)
      && (change === "" || change === name || (change === FLIPPED && name.startsWith("made ")));
  });
}

const sorted = (some) => some;
const pictureOf = (row) => read(`i${row.picture}`);
function lineOf(row) {
  const name = nameOf(changeOf(row.verdicts));
  return { mark: name, markClass: classOf(name), text: row.question };
}
