"use strict";
// The page's index of rows is small and read at once; a row's own data and its picture are read when it comes into
// view. Whatever a model wrote goes in as text, never as markup.

const ROW = 76; // pixels, as in the style sheet
const find = (id) => document.getElementById(id);
const read = (id) => { const part = find(id); return part && JSON.parse(part.textContent); };

const names = read("names");
const rows = read("rows").map((values, number) => {
  const row = { number };
  names.fields.forEach((field, n) => { row[field] = values[n]; });
  return row;
});

/** Make an element; children are elements or texts. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return made;
}
const count = (number) => number.toLocaleString("en");
const digits = (number) => (number === null || number === undefined ? "–" : String(+number.toPrecision(4)));

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
