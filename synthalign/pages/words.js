// What two texts have in common, word by word.

const segmenter = "Segmenter" in Intl ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;
const wordsOf = (text) => (segmenter ? Array.from(segmenter.segment(text), (part) => part.segment) : text.split(/(\s+)/));

/** Tell for each word of two texts whether the other has it too, in order: a longest common subsequence. */
function compareWords(a, b) {
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  while (end < Math.min(a.length, b.length) - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const rows = a.length - start - end, columns = b.length - start - end;
  if (rows * columns > 9e6) return null;
  const common = [a.map((_, n) => n < start || n >= a.length - end), b.map((_, n) => n < start || n >= b.length - end)];
  const longest = new Uint16Array((rows + 1) * (columns + 1));
  for (let i = rows - 1; i >= 0; i--) {
    for (let j = columns - 1; j >= 0; j--) {
      const here = i * (columns + 1) + j;
      longest[here] = a[start + i] === b[start + j] ? longest[here + columns + 2] + 1 : Math.max(longest[here + columns + 1], longest[here + 1]);
    }
  }
  for (let i = 0, j = 0; i < rows && j < columns;) {
    const here = i * (columns + 1) + j;
    if (a[start + i] === b[start + j]) { common[0][start + i++] = true; common[1][start + j++] = true; }
    else if (longest[here + columns + 1] >= longest[here + 1]) i++;
    else j++;
  }
  return common;
}

/** Return the words as nodes, those that the other text lacks marked. */
function marked(words, common, tag) {
  const alone = words.map((_, n) => common && !common[n]);
  const gap = (n) => !words[n].trim() && alone[n - 1] && alone[n + 1]; // a space between two marked words
  const nodes = [];
  let run = "", inside = false;
  const flush = () => { if (run) nodes.push(inside ? el(tag, {}, run) : document.createTextNode(run)); run = ""; };
  words.forEach((word, n) => {
    const now = Boolean((alone[n] && word.trim()) || gap(n));
    if (now !== inside) { flush(); inside = now; }
    run += word;
  });
  flush();
  return nodes;
}
