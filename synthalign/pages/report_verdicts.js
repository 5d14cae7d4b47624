// What is compared with what, and how figures and verdicts read.

const run = read("run");
for (const one of run.sittings) one.label = one.label.replace(/ (?=\d)/, "\u00a0");
const compared = run.sittings.filter((one) => one.compared); // in the order of the verdicts' letters
let first = 0, second = compared.length - 1; // places in `compared`
const single = compared.length === 1;

/** The verdict then and now, as two letters: 1 right, 0 wrong, ? not judged, - not asked. */
const changeOf = (verdicts) => verdicts[first] + verdicts[second];
const CHANGES = { "01": "made right", "10": "made wrong", "00": "still wrong", "11": "still right" };
const ALONE = { "00": "wrong", "11": "right" };
function nameOf(change) {
  if (change.includes("-")) return "not asked both times";
  if (change.includes("?")) return "unjudged";
  return (first === second ? ALONE : CHANGES)[change];
}
const CLASSES = { "made right": "won", "made wrong": "lost", "still wrong": "lost soft", "still right": "won soft", wrong: "lost", right: "won", unjudged: "wait" };
const classOf = (name) => CLASSES[name] || "soft";

/** Count an evaluation's answers, shown or not, by how they changed. */
function tally(evaluation) {
  const counts = {};
  for (const patterns of Object.values(evaluation.patterns)) {
    for (const [verdicts, number] of Object.entries(patterns)) {
      const change = changeOf(verdicts);
      counts[change] = (counts[change] || 0) + number;
    }
  }
  return counts;
}

/** McNemar's exact test: how likely so uneven a split of n changes is, if either way is as likely; two-sided. */
function mcnemar(right, wrong) {
  const n = right + wrong, least = Math.min(right, wrong);
  let term = -n * Math.LN2, sum = 0; // the logarithm of one term: sums of n choose k would overflow
  for (let k = 0; k <= least; k++) {
    sum += Math.exp(term);
    term += Math.log(n - k) - Math.log(k + 1);
  }
  return Math.min(1, 2 * sum);
}
const probability = (p) => (p < 0.0001 ? "p < 0.0001" : `p = ${p < 0.1 ? +p.toPrecision(2) : p.toFixed(2)}`);

/** Return an evaluation's metrics at one sitting, keys without its name. */
function metricsOf(evaluation, sitting) {
  const prefix = `${evaluation.name}/`;
  return Object.fromEntries(Object.entries(sitting.metrics).filter(([key]) => key.startsWith(prefix)).map(([key, value]) => [key.slice(prefix.length), value]));
}
const known = (value) => value !== null && value !== undefined;
const isCount = (key) => /(^|\/)n(_[a-z_]+)?$/.test(key);

/** Return a metric's legend; one that results.json says nothing of is a plain number, and a headline unless a count. */
const legendOf = (evaluation, key) => ({ better: null, percent: false, headline: !isCount(key), ...evaluation.legend[key] });
const arrowOf = (legend) => ({ high: " ↑", low: " ↓" })[legend.better] || "";
const isBound = (key, metrics) => /_(low|high)$/.test(key) && key.replace(/_(low|high)$/, "") in metrics;

/** Write a value as its legend says; with a sign, a difference of two of which the larger is so large. */
function shownAs(value, key, legend, sign, size = value) {
  if (!known(value)) return "–";
  const text = legend.percent ? (100 * value).toFixed(1) : value.toFixed(isCount(key) ? 0 : Math.abs(size) < 10 ? 3 : 1);
  const signed = sign && value > 0 && Number(text) !== 0 ? `+${text}` : sign && Number(text) === 0 ? text.replace("-", "") : text;
  return signed.replace("-", "−") + (legend.percent ? (sign ? " pp" : " %") : "");
}

/** Return a change as a cell; its colour says whether it is for the better, and so does a word for those who hear. */
function changeCell(before, after, key, legend) {
  if (!known(before) || !known(after)) return el("td", { class: "number" }, "–");
  const better = legend.better === null || before === after ? null : (after > before) === (legend.better === "high");
  return el("td", { class: `number ${better === null ? "" : better ? "won" : "lost"}` }, shownAs(after - before, key, legend, true, Math.max(Math.abs(before), Math.abs(after))),
    better === null ? null : el("span", { class: "heard" }, better ? " better" : " worse"));
}

/** Return a name that may be broken after a slash or an underscore; what follows stays with its last part. */
function breakable(name, after = "") {
  const parts = name.split(/(?<=[/_])/);
  parts[parts.length - 1] += after;
  return parts.flatMap((part, n) => (n ? [el("wbr"), part] : [part]));
}

/** Return how many questions a metric stands on: the nearest n, of its own group or of all. */
function countOf(key, metrics) {
  const group = key.includes("/") ? `${key.slice(0, key.lastIndexOf("/"))}/n` : "n";
  return metrics[group] === undefined ? metrics.n : metrics[group];
}

/** Return the metrics to show of an evaluation, counts last. Where no legend says, not those of each type. */
function headlines(evaluation, metrics) {
  const keys = Object.keys(metrics).filter((key) => legendOf(evaluation, key).headline && !isBound(key, metrics)).sort((a, b) => isCount(a) - isCount(b));
  if (Object.keys(evaluation.legend).length) return keys;
  const whole = keys.filter((key) => !key.includes("/") || key.startsWith("mean/"));
  return whole.length ? whole : keys;
}
