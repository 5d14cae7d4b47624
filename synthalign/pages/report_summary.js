// The summary: figures of both sides, what became of the answers, curves, bars by type, training.

const pair = () => (first === second ? [compared[first]] : [compared[first], compared[second]]);

function figuresOf(evaluation) {
  const sides = pair(), metrics = sides.map((one) => metricsOf(evaluation, one)), now = metrics[metrics.length - 1];
  const keys = headlines(evaluation, { ...metrics[0], ...now });
  if (!keys.length) return null;
  const bare = (value, legend) => shownAs(value, "", legend).replace(" %", "");
  const cell = (of, key, legend) => el("td", { class: "number" }, shownAs(of[key], key, legend),
    known(of[`${key}_low`]) && known(of[`${key}_high`]) ? el("small", { title: "95 % interval" }, `${bare(of[`${key}_low`], legend)} to ${bare(of[`${key}_high`], legend)}`) : null);
  const line = (key) => {
    const legend = legendOf(evaluation, key), n = countOf(key, now);
    return el("tr", {}, el("th", { scope: "row" }, breakable(key, arrowOf(legend).replace(" ", "\u00a0"))), metrics.map((of) => cell(of, key, legend)),
      metrics.length > 1 ? changeCell(metrics[0][key], now[key], key, legend) : null, el("td", { class: "number n" }, known(n) ? count(n) : ""));
  };
  const head = ["metric", ...sides.map((one) => one.label), ...(sides.length > 1 ? ["change"] : []), "n"];
  return el("div", { class: "scroll" }, el("table", { class: "figures" },
    el("thead", {}, el("tr", {}, head.map((text, n) => el("th", { scope: "col", class: n ? "number" : "" }, text)))),
    el("tbody", {}, keys.map(line))));
}

/** Set right and wrong then against right and wrong now; the counts that changed lead to the answers. */
function verdictsOf(evaluation) {
  const counts = tally(evaluation), judged = Object.entries(counts).filter(([change]) => !/[?-]/.test(change)).reduce((sum, [, n]) => sum + n, 0);
  const total = Object.values(counts).reduce((sum, n) => sum + n, 0), made = [];
  if (!total) return [el("p", { class: "legend" }, "There are no saved replies of it.")];
  if (judged < total) {
    const rest = Object.entries(counts).filter(([change]) => change.includes("?")).reduce((sum, [, n]) => sum + n, 0);
    const partly = evaluation.silent ? "an older version saved them without" : judged ? "the figures leave them out" : "there is no figure for them, and no right or wrong";
    if (rest) made.push(el("p", { class: "loud" }, el("b", {}, `${count(rest)} of ${count(total)} answers ${evaluation.silent ? "have no verdict" : "are unjudged"}`), `: ${partly}.`));
    if (total - judged - rest) made.push(el("p", { class: "loud" }, `${count(total - judged - rest)} questions were not asked both times.`));
  }
  if (!judged) return made;
  const lead = (change) => {
    const number = counts[change] || 0, name = nameOf(change);
    const act = () => { find("evaluation").value = run.evals.indexOf(evaluation); find("search").value = ""; fillTypes(); find("change").value = name; choose(); find("browse").scrollIntoView(); };
    const listed = number && rows.some((row) => run.evals[row.eval] === evaluation && changeOf(row.verdicts) === change);
    return el("td", { class: "number" }, listed ? el("button", { type: "button", class: classOf(name), title: "show these", on: { click: act } }, count(number), el("small", {}, name))
      : el("span", { class: "still" }, count(number), el("small", {}, name)));
  };
  if (first === second) {
    made.push(el("table", { class: "verdicts" }, el("caption", {}, `Answers, ${compared[first].label}`), el("tbody", {}, el("tr", {}, lead("11"), lead("00")))));
    return made;
  }
  const [then, now] = pair().map((one) => one.label);
  made.push(el("table", { class: "verdicts" }, el("caption", {}, `Answers: ${then} (rows), ${now} (columns)`),
    el("thead", {}, el("tr", {}, el("td", {}), ["now right", "now wrong"].map((name) => el("th", { scope: "col", class: "number" }, name)))),
    el("tbody", {}, [["was right", "11", "10"], ["was wrong", "01", "00"]].map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), cells.map(lead))))));
  const right = counts["01"] || 0, wrong = counts["10"] || 0;
  made.push(el("p", { class: "legend" }, right + wrong ? [`Of ${count(right + wrong)} changed answers ${count(right)} became right: `, el("b", {}, probability(mcnemar(right, wrong))), " (McNemar’s exact test, two-sided)."] : "No verdict changed."));
  return made;
}

function card(evaluation) {
  const told = Object.entries(evaluation.about).filter(([, value]) => value !== "");
  const size = [evaluation.class, known(evaluation.questions) ? `${count(evaluation.questions)} questions` : null,
    known(evaluation.distinct_questions) && evaluation.distinct_questions !== evaluation.questions ? `${count(evaluation.distinct_questions)} distinct` : null];
  return el("section", { class: "chart card" }, el("h3", {}, evaluation.name, el("small", {}, size.filter(Boolean).join(" · "))),
    figuresOf(evaluation) || el("p", { class: "loud" }, el("b", {}, "No figure. "), "This evaluation gave none."), verdictsOf(evaluation),
    told.length ? el("dl", { class: "about" }, told.map(([name, value]) => el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, String(value))))) : null);
}

/** Draw the headline metrics over the run, where it was evaluated more than once. */
function curves() {
  const sat = run.sittings.filter((one) => one.step !== null);
  if (sat.length < 2) return;
  const epochs = sat.map((one) => one.epoch), byStep = epochs.some((epoch) => !Number.isInteger(epoch)) || new Set(epochs).size < epochs.length;
  const charts = run.evals.map((evaluation) => {
    const metrics = sat.map((one) => metricsOf(evaluation, one)), keys = headlines(evaluation, Object.assign({}, ...metrics));
    const one = (key) => {
      const legend = legendOf(evaluation, key), scale = legend.percent ? 100 : 1;
      const scaled = (value) => (known(value) ? value * scale : value);
      const points = sat.map((at, n) => ({ x: byStep ? at.step : at.epoch, y: scaled(metrics[n][key]), low: scaled(metrics[n][`${key}_low`]), high: scaled(metrics[n][`${key}_high`]), label: at.label, open: at.step === 0 })).filter((point) => known(point.y));
      const show = (value) => shownAs(value / scale, key, legend);
      return lines(key + arrowOf(legend), { unit: legend.percent ? "%" : "", xName: byStep ? "optimizer step" : "epoch", whole: !byStep, dots: true, show }, { name: "", points });
    };
    const made = keys.filter((key) => !/(^|\/)n_/.test(key) || metrics.some((of) => of[key] > 0)).map(one).filter(Boolean);
    return made.length ? [el("h3", {}, evaluation.name), el("div", { class: "grid" }, made)] : [];
  }).flat();
  const bound = run.evals.some((evaluation) => sat.some((one) => Object.keys(one.metrics).some((key) => key.startsWith(`${evaluation.name}/`) && key.endsWith("_low"))));
  if (charts.length) find("curves").replaceChildren(el("h2", {}, "Over the run"), el("p", { class: "legend" }, `Hollow: before training. Scales do not begin at zero.${bound ? " A band is the 95 % interval." : ""}`), ...charts);
}

const chosenFamily = new Map();
/** Set the types of each evaluation side by side, one metric at a time. */
function types() {
  const cards = run.evals.map((evaluation) => {
    const sides = pair(), metrics = sides.map((one) => metricsOf(evaluation, one)), families = new Map();
    for (const key of Object.keys({ ...metrics[0], ...metrics[metrics.length - 1] })) {
      const cut = key.lastIndexOf("/"), name = key.slice(cut + 1);
      if (cut < 0 || isCount(name) || /_(low|high)$/.test(name)) continue;
      families.set(name, [...(families.get(name) || []), key.slice(0, cut)]);
    }
    const choices = [...families].filter(([, groups]) => groups.length > 1).map(([name]) => name);
    if (!choices.length) return null;
    const before = chosenFamily.get(evaluation.name), name = choices.includes(before) ? before : choices[0];
    const pick = el("select", { "aria-label": `metric of ${evaluation.name} by type`, on: { change: (event) => { chosenFamily.set(evaluation.name, event.target.value); types(); find("types").querySelector(`[data-eval="${CSS.escape(evaluation.name)}"]`).focus(); } } },
      choices.map((choice) => el("option", { value: choice, selected: choice === name }, choice)));
    pick.dataset.eval = evaluation.name;
    const groups = families.get(name), marked = groups.map((group) => legendOf(evaluation, `${group}/${name}`));
    const legend = marked.find((one) => one.better !== null || one.percent) || marked[0];
    const lined = groups.map((group) => ({ name: group, values: metrics.map((of) => of[`${group}/${name}`]), n: metrics[metrics.length - 1][`${group}/n`] }));
    return el("section", { class: "chart card" }, el("h3", {}, evaluation.name, choices.length > 1 ? pick : el("small", {}, name), arrowOf(legend) && el("small", {}, arrowOf(legend))),
      el("div", { class: "scroll" }, bars(sides.map((one) => one.label), lined, { show: (value) => shownAs(value, name, legend), change: (row) => changeCell(...row.values, name, legend) })));
  }).filter(Boolean);
  find("types").replaceChildren(...(cards.length ? [el("h2", {}, "By type"), el("div", { class: "cards" }, cards)] : []));
}

/** Draw what the training logged: what everyone looks at first, the rest folded away. */
function training() {
  const of = (name) => (run.training[name] || []).map(([x, y]) => ({ x, y })).filter((point) => known(point.y));
  const one = (title, unit, ...named) => lines(title, { unit, xName: "optimizer step", smooth: true }, ...named.map(([name, key]) => ({ name, points: of(key) })).filter((line) => line.points.length));
  const firstSeen = [one("Loss", "", ["", "train/loss"]), one("Accuracy", "share of pairs", ["", "train/accuracy"]), one("Reward margin", "beta × nats", ["", "train/reward_margin"]),
    one("Rewards", "beta × nats", ["chosen", "train/chosen_reward"], ["rejected", "train/rejected_reward"])];
  const told = ["loss", "accuracy", "reward_margin", "chosen_reward", "rejected_reward"].map((name) => `train/${name}`);
  const rest = Object.keys(run.training).filter((key) => !told.includes(key)).map((key) => one(key, "", ["", key])).filter(Boolean);
  const seen = firstSeen.filter(Boolean);
  if (seen.length + rest.length === 0) return;
  const more = rest.length ? el("details", {}, el("summary", {}, `${rest.length} more`), el("div", { class: "grid" }, rest)) : null;
  const how = el("p", { class: "legend" }, "Bold: a running mean over a twentieth of the curve; the numbers are its ends.");
  find("training").replaceChildren(...[el("h2", {}, "Training"), how, seen.length ? el("div", { class: "grid" }, seen) : null, more].filter(Boolean));
}

/** List every metric at every evaluation. */
function allMetrics() {
  const keys = [...new Set(run.sittings.flatMap((one) => Object.keys(one.metrics)))];
  const line = (key) => {
    const evaluation = run.evals.find((one) => key.startsWith(`${one.name}/`));
    const legend = evaluation ? legendOf(evaluation, key.slice(evaluation.name.length + 1)) : { percent: false };
    return el("tr", {}, el("th", { scope: "row" }, key), run.sittings.map((one) => el("td", { class: "number" }, shownAs(one.metrics[key], key, legend))));
  };
  if (keys.length) find("metrics").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "metric"), run.sittings.map((one) => el("th", { scope: "col", class: "number" }, one.label)))), el("tbody", {}, keys.map(line))));
}

/** Show what depends on the two evaluations that are compared. */
function compare() {
  find("figures").replaceChildren(el("div", { class: "cards" }, run.evals.map(card)),
    first === second ? "" : el("p", { class: "legend" }, "McNemar’s test asks whether as many answers became right as wrong by chance. It takes the questions as independent, which those about one image, or those asked again under another type, are not, and says nothing of another run with another seed. Right: what the evaluation’s own rule counts as right, or as free of hallucination. Answers that were right every time are counted here and not listed below."));
  types();
}

function summary() {
  const options = (chosen) => compared.map((one, n) => el("option", { value: n, selected: n === chosen }, one.label));
  find("first").append(...options(first));
  find("second").append(...options(second));
  find("compare").hidden = compared.length < 3;
  document.body.classList.toggle("plain", compared.length < 3);
  find("compare").addEventListener("change", () => {
    [first, second] = [+find("first").value, +find("second").value];
    compare();
    fillChanges();
    choose(true);
    paintDetail();
  });
  compare();
  curves();
  training();
  allMetrics();
}
