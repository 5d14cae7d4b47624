// One row in full: its images, the pair with its differences, all responses.

function figure(candidate, best, number) {
  const image = candidate.image
    ? el("img", { src: imageURL(candidate.image), alt: best ? "the image that was kept" : `candidate ${number + 1}, not kept`, on: { load: (event) => event.target.classList.toggle("tiny", event.target.naturalWidth < 64) } })
    : el("div", { class: "blank" }, "image left out");
  const parts = (candidate.scores || []).map((part) => `${part.reward} ${digits(part.score)}`);
  const told = [candidate.guidance_scale === null ? null : `guidance ${digits(candidate.guidance_scale)}`, ...parts, best && candidate.seed ? `seed ${candidate.seed}` : null];
  return el("figure", { class: best ? "best" : "other", title: candidate.seed && `seed ${candidate.seed}` }, image,
    el("figcaption", {}, el("b", {}, `${best ? "best " : ""}${digits(candidate.score)}`), ` ${told.filter(Boolean).join(" · ")}`));
}

function images(row) {
  const picture = read(`i${row.picture}`);
  if (!picture) return el("p", { class: "empty" }, document.readyState === "loading" ? "The page is still loading…" : "There is no image of this row.");
  const places = picture.candidates.map((_, n) => n).filter((n) => n !== picture.best);
  places.sort((a, b) => last(picture.candidates[b].score) - last(picture.candidates[a].score));
  if (picture.best !== null) places.unshift(picture.best);
  return el("div", { class: "images" }, places.map((n) => figure(picture.candidates[n], n === picture.best, n)));
}

function side(name, candidate, words, common) {
  const told = [names.responders[candidate.responder], candidate.score === undefined ? null : `score ${digits(candidate.score)}`, `${candidate.text.split(/\s+/).filter(Boolean).length} words`, candidate.truncated ? "truncated" : null];
  return el("section", { class: `side ${name === "rejected" ? "lost" : ""}` }, el("h3", {}, name),
    el("div", { class: "said", dir: "auto" }, marked(words, common, name === "rejected" ? "del" : "ins")), el("footer", {}, told.filter(Boolean).join(" · ")));
}

function sides(more) {
  if (more.chosen === null || more.rejected === null) return null;
  const both = [more.candidates[more.chosen], more.candidates[more.rejected]];
  const words = both.map((one) => wordsOf(one.text));
  const common = compareWords(...words);
  const boxes = ["chosen", "rejected"].map((name, n) => side(name, both[n], words[n], common && common[n]));
  return [el("div", { class: "sides" }, boxes), common ? null : el("p", { class: "legend" }, "Too long to be compared word by word.")];
}

function candidates(more) {
  const places = more.candidates.map((_, n) => n).sort((a, b) => last(more.candidates[b].score) - last(more.candidates[a].score));
  const line = (n) => {
    const one = more.candidates[n];
    const flags = [
      n === more.chosen ? el("span", { class: "flag won" }, "chosen") : null,
      n === more.rejected ? el("span", { class: "flag refused" }, "rejected") : null,
      one.refused ? el("span", { class: "flag refused" }, `refused: ${one.refused}`) : null,
      one.truncated ? el("span", { class: "flag cut" }, "truncated") : null,
    ].filter(Boolean).flatMap((flag) => [flag, " "]);
    const parts = (one.scores || []).map((part) => el("small", {}, `${part.reward} ${digits(part.score)}`));
    return el("tr", {}, el("td", { class: "number" }, digits(one.score), parts),
      el("td", { class: "by" }, one.responder === undefined ? "" : names.responders[one.responder]),
      el("td", { class: "text" }, flags, el("div", { class: "said", dir: "auto" }, one.text || "(empty)"), one.detail ? el("small", {}, one.detail) : null));
  };
  return [el("h3", {}, `All ${count(more.candidates.length)} responses, best first`), el("table", { class: "candidates" },
    el("thead", {}, el("tr", {}, el("th", { class: "number" }, "score"), el("th", { class: "by" }, "responder"), el("th", {}, "response"))), el("tbody", {}, places.map(line)))];
}

function why(row, more) {
  if (row.pending) return el("p", { class: "why pending" }, `Unfinished: ${row.pending}.`);
  if (row.reason === null) return null;
  return el("p", { class: "why" }, el("b", {}, `Dropped: ${names.reasons[row.reason]}. `), more.detail || "");
}

function paintDetail() {
  const row = current, more = row && read(`r${row.number}`);
  if (!more) {
    find("detail").replaceChildren(el("p", { class: "empty" }, rows.length ? "The page is still loading…" : "There is nothing here yet."));
    return;
  }
  const margin = row.margin === null ? "" : ` · margin ${digits(row.margin)}`;
  find("detail").replaceChildren(...[
    el("div", { class: "top" },
      el("button", { class: "back", type: "button", on: { click: close } }, "Back to the list"),
      el("h2", {}, el("a", { href: `#${encodeURIComponent(row.id)}`, title: "link to this row" }, row.id)),
      el("span", { class: kind(row) }, kind(row) === "pairs" ? `pair${margin}` : kind(row)),
      el("div", { class: "steps" },
        el("button", { type: "button", id: "back-one", title: "arrow left", on: { click: () => step(-1) } }, "Previous"),
        el("button", { type: "button", id: "on-one", title: "arrow right", on: { click: () => step(1) } }, "Next"))),
    images(row),
    el("h3", {}, "Drawn from"), el("p", { class: "said", dir: "auto" }, more.prompt || "–"),
    ...(more.question ? [el("h3", {}, "Question"), el("p", { class: "said question", dir: "auto" }, more.question)] : []),
    why(row, more),
    ...[sides(more)].flat(),
    ...(more.candidates.length ? candidates(more) : []),
  ].filter(Boolean));
  find("detail").scrollTop = 0;
  steps();
}
