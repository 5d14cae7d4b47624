// Charts: a line over steps or epochs, and bars side by side.

/** Numbers at 1, 2 or 5 times a power of ten, about so many between two. */
function ticksOf(low, high, about) {
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let n = Math.ceil(low / width - 1e-9); n * width <= high + width * 1e-6; n++) ticks.push(n * width);
  return ticks;
}

/** Average each point with its neighbours, a twentieth of the curve in all. */
function smoothed(points) {
  const reach = Math.floor(points.length / 40);
  return points.map((point, n) => {
    const near = points.slice(Math.max(0, n - reach), n + reach + 1);
    return { ...point, y: near.reduce((sum, one) => sum + one.y, 0) / near.length };
  });
}

/** Draw one or two lines; each is {name, points: [{x, y, low, high, label}]}. Gaps are left out. */
function lines(title, { unit = "", xName, whole = false, dots = false, smooth = false, show = digits }, ...series) {
  const all = series.flatMap((one) => one.points);
  if (!all.length) return null;
  const xs = all.map((one) => one.x), ys = all.flatMap((one) => [one.y, one.low, one.high].filter(known));
  const left = 46, right = 252, top = 10, bottom = 122;
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  const room = (y1 - y0) * 0.08 || Math.abs(y0) * 0.05 || 0.5;
  [y0, y1] = [y0 - room, y1 + room];
  const at = (x) => left + ((x - x0) / (x1 - x0)) * (right - left), up = (y) => bottom - ((y - y0) / (y1 - y0)) * (bottom - top);
  const chart = svg("svg", { viewBox: "0 0 264 160", role: "img" });
  const yTicks = ticksOf(y0, y1, 4), places = Math.max(0, -Math.floor(Math.log10(yTicks.length > 1 ? yTicks[1] - yTicks[0] : 1) + 1e-9));
  for (const y of yTicks) {
    chart.append(svg("line", { class: "axis", x1: left, x2: right, y1: up(y), y2: up(y) }),
      svg("text", { x: left - 6, y: up(y) + 4, "text-anchor": "end" }, y.toFixed(Math.min(places, 6)).replace("-", "−")));
  }
  for (const x of ticksOf(x0, x1, 5).filter((one) => !whole || Number.isInteger(+one.toFixed(6)))) {
    chart.append(svg("text", { x: at(x), y: bottom + 15, "text-anchor": "middle" }, count(+x.toFixed(6))));
  }
  chart.append(svg("text", { class: "unit", x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, xName));
  series.forEach((one, n) => {
    const points = smooth ? smoothed(one.points) : one.points, style = n ? "second" : "first";
    const line = (of, points) => points.map((point, m) => `${m ? "L" : "M"}${at(point.x).toFixed(1)} ${up(of(point)).toFixed(1)}`).join("");
    if (points.length > 1 && points.every((point) => known(point.low) && known(point.high))) {
      const back = [...points].reverse().map((point) => `L${at(point.x).toFixed(1)} ${up(point.low).toFixed(1)}`).join("");
      chart.append(svg("path", { class: `${style} band`, d: `${line((point) => point.high, points)}${back}Z` }));
    }
    if (smooth) chart.append(svg("path", { class: `${style} raw`, d: line((point) => point.y, one.points) }));
    chart.append(svg("path", { class: `${style} line`, d: line((point) => point.y, points) }));
    for (const point of dots ? points : []) {
      const told = `${point.label}: ${show(point.y)}${known(point.low) ? ` (${show(point.low)} to ${show(point.high)})` : ""}`;
      chart.append(svg("circle", { class: `${style} ${point.open ? "open" : ""}`, cx: at(point.x), cy: up(point.y), r: 3.2 }, svg("title", {}, told)));
    }
  });
  const ends = series.map((one) => ({ name: one.name, points: smooth ? smoothed(one.points) : one.points })).map((one) => `${one.name}${one.name ? ": " : ""}${show(one.points[0].y)} → ${show(one.points[one.points.length - 1].y)}`);
  chart.setAttribute("aria-label", `${title}${unit && `, ${unit}`}, by ${xName}. From first to last ${ends.join("; ")}`);
  return el("figure", { class: "chart small" }, el("figcaption", {}, el("b", {}, breakable(title)), unit && ` ${unit}`), chart,
    el("p", { class: "legend" }, ends.map((told, n) => el("span", { class: series.length > 1 ? (n ? "second" : "first") : "" }, told))));
}

/** Set bars side by side as a table; each row is {name, values, n}. */
function bars(names, rows, { show, change }) {
  const most = Math.max(...rows.flatMap((row) => row.values.filter(known).map(Math.abs)), 1e-12);
  const bar = (value, n) => { const made = el("i", { class: n ? "bar now" : "bar then" }); made.style.width = `${(100 * Math.abs(value || 0)) / most}%`; return made; };
  return el("table", { class: "sides-by-side" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "type"), el("td", {}), names.map((name, n) => el("th", { scope: "col", class: `number ${names.length < 2 ? "" : n ? "key-now" : "key-then"}` }, name)), names.length > 1 && el("th", { scope: "col", class: "number" }, "change"), el("th", { scope: "col", class: "number" }, "n"))),
    el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name),
      el("td", { class: "drawn", "aria-hidden": "true" }, row.values.map((value, n) => bar(value, names.length > 1 ? n : 1))),
      row.values.map((value) => el("td", { class: "number" }, show(value))), names.length > 1 && change(row), el("td", { class: "number n" }, known(row.n) ? count(row.n) : "")))));
}
