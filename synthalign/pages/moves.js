// Moving about: keys and addresses; then everything starts.

function keys(event) {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const page = Math.max(1, Math.floor(find("list").clientHeight / ROW) - 1);
  const onList = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  const anywhere = { ArrowRight: 1, ArrowLeft: -1, j: 1, k: -1 };
  const by = event.target === find("list") && event.key in onList ? onList[event.key] : anywhere[event.key];
  if (by !== undefined) { event.preventDefault(); step(by); }
  else if (event.key === "Enter" && event.target === find("list") && current) select(current, { open: true });
  else if (event.key === "Escape") close();
  else if (event.key === "/") { event.preventDefault(); find("search").focus(); }
}

/** Show the row that the address names, whatever the filters say. */
function follow() {
  let id;
  try { id = decodeURIComponent(location.hash.slice(1)); } catch { return; }
  const row = id && rows.find((one) => one.id === id);
  if (!row) return;
  if (!shown.includes(row)) {
    for (const tool of FILTERS) find(tool).value = "";
    choose(true);
  }
  select(row, { open: true, quiet: true });
  find("browse").scrollIntoView({ behavior: "instant" });
}

let waiting = null;
const complete = new Promise((resume) => {
  if (document.readyState !== "loading") resume();
  else document.addEventListener("DOMContentLoaded", resume);
});

find("tools").addEventListener("submit", (event) => event.preventDefault());
find("tools").addEventListener("change", () => choose());
find("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(choose, 200); });
find("list").addEventListener("scroll", () => requestAnimationFrame(paintRows), { passive: true });
window.addEventListener("resize", paintRows);
window.addEventListener("hashchange", follow);
document.addEventListener("keydown", keys);

fillTools();
summary();
choose();
follow();
complete.then(() => { paintRows(); paintDetail(); });
