// The summary: what became of the questions, histograms, responders.

/** Widths of 1, 2 or 5 times a power of ten, about so many between two numbers. */
function binsOf(low, high, about) {
  if (low === high) { low -= 0.5; high += 0.5; }
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
  const first = Math.floor(low / width + 1e-9);
  return { width, first, number: Math.max(1, Math.floor(high / width + 1e-9) - first + 1) };
}

/** Draw one or two series over each other; each is {name, values}. */
function histogram(title, unit, ...series) {
  series = series.filter((one) => one.values.length);
  const all = series.flatMap((one) => one.values);
  if (!all.length) return null;
  let low = Infinity, high = -Infinity;
  for (const value of all) { if (value < low) low = value; if (value > high) high = value; }
  let bins = binsOf(low, high, 26);
  if (all.every(Number.isInteger) && bins.width < 1) bins = { width: 1, first: low, number: high - low + 1 };
  const counts = series.map((one) => {
    const tall = new Array(bins.number).fill(0);
    for (const value of one.values) tall[Math.min(bins.number - 1, Math.floor(value / bins.width + 1e-9) - bins.first)]++;
    return tall;
  });
  const most = Math.max(...counts.flat()), left = 8 + 7 * count(most).length, width = 400 - left, height = 130;
  const at = (bin) => left + (bin * width) / bins.number;
  const chart = svg("svg", { viewBox: "0 0 410 162", role: "img" });
  for (const part of [0, 0.5, 1]) {
    const y = 10 + height * (1 - part);
    chart.append(svg("line", { class: "axis", x1: left, x2: 400, y1: y, y2: y }));
    if (most * part === Math.round(most * part)) chart.append(svg("text", { x: left - 5, y: y + 4, "text-anchor": "end" }, count(most * part)));
  }
  counts.forEach((tall, n) => tall.forEach((number, bin) => {
    if (!number) return;
    const from = (bins.first + bin) * bins.width, size = (height * number) / most;
    chart.append(svg(
      "rect",
      { class: `${n ? "second" : "first"} ${series.length > 1 ? "both" : ""}`, x: at(bin) + 0.5, y: 10 + height - size,
        width: Math.max(1, at(1) - at(0) - 1), height: size },
      svg("title", {}, `${digits(from)} to ${digits(from + bins.width)}: ${count(number)} ${series[n].name}`),
    ));
  }));
  const every = [1, 2, 5, 10, 20, 50].find((step) => bins.number / step <= 8) || bins.number;
  for (let bin = 0; bin <= bins.number; bin++) {
    if ((bins.first + bin) % every === 0) chart.append(svg("text", { x: at(bin), y: 156, "text-anchor": at(bin) > 385 ? "end" : "middle" }, digits((bins.first + bin) * bins.width)));
  }
  const middle = (values) => { const sorted = Float64Array.from(values).sort(); return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2; };
  const told = series.map((one) => `${one.name}: ${count(one.values.length)}, median ${digits(middle(one.values))} ${unit}`);
  chart.setAttribute("aria-label", `${title}. ${told.join("; ")}`);
  const legend = told.map((line, n) => el("span", { class: n ? "second" : "first" }, line));
  return el("section", { class: "chart" }, el("h2", {}, title), chart, el("p", { class: "legend" }, legend));
}

/** List what became of the questions; a click shows those. */
function outcomes() {
  const tally = new Map();
  for (const row of rows) {
    const value = row.pending ? `pending:${row.pending}` : row.reason === null ? "pairs" : `dropped:${row.reason}`;
    tally.set(value, (tally.get(value) || 0) + 1);
  }
  const lines = [...tally].sort((a, b) => b[1] - a[1]).map(([value, number]) => {
    const [name, rest] = value.split(/:(.*)/s);
    const label = name === "pairs" ? "pairs" : name === "pending" ? rest : `dropped: ${names.reasons[rest]}`;
    const act = () => { find("outcome").value = value; choose(); find("browse").scrollIntoView(); };
    const bar = el("i", { class: `bar ${name}` });
    bar.style.width = `${(100 * number) / rows.length}%`;
    return el("li", {}, el("button", { type: "button", title: "show these", on: { click: act } },
      el("span", { class: name }, label), el("span", { class: "count" }, count(number)), bar));
  });
  return el("section", { class: "chart" }, el("h2", {}, `What became of ${count(rows.length)} questions`), el("ul", { class: "bars" }, lines));
}

/** How often each responder took part, was chosen, was rejected. */
function responders() {
  if (!names.responders.length) return null;
  const tally = names.responders.map(() => [0, 0, 0, 0]);
  for (const row of rows) {
    for (const one of row.responders) tally[one][0]++;
    if (row.chosen !== null && kind(row) === "pairs") {
      tally[row.chosen][1]++;
      tally[row.rejected][2]++;
      if (row.chosen !== row.rejected) { tally[row.chosen][3]++; }
    }
  }
  const head = ["Responder", "questions", "chosen", "rejected", "chosen over another responder"];
  return el("section", { class: "chart whole" }, el("h2", {}, "Pairs by responder"), el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((text, n) => el("th", { scope: "col", class: n ? "number" : "" }, text)))),
    el("tbody", {}, names.responders.map((name, n) => el("tr", {}, el("th", { scope: "row" }, name), tally[n].map((number) => el("td", { class: "number" }, count(number)))))))));
}

function summary() {
  const pairs = rows.filter((row) => kind(row) === "pairs");
  const scores = read("pictures");
  const charts = [
    outcomes(),
    histogram("Margin of the pairs", "", { name: "pairs", values: pairs.map((row) => row.margin).filter((margin) => margin !== null) }),
    histogram("Length of the responses", "words",
      { name: "chosen", values: pairs.map((row) => row.words[0]) }, { name: "rejected", values: pairs.map((row) => row.words[1]) }),
    scores && imageScores(scores),
    responders(),
  ];
  find("charts").replaceChildren(...charts.filter(Boolean));
}

function imageScores(pictures) {
  const best = [], others = [];
  for (const scores of pictures) {
    const known = scores.filter((score) => score !== null).sort((a, b) => b - a);
    best.push(...known.slice(0, 1));
    others.push(...known.slice(1));
  }
  return histogram("Score of the images", "", { name: "best", values: best }, { name: "others", values: others });
}
