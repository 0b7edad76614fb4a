// Formatting values as zoo/units.py does, and creating elements.

const digits = number => (number >= 100 || number === Math.trunc(number) ? 0 : number >= 10 ? 1 : 2);
const threeDigits = number => fixed(number, digits(number));

// toFixed, but rounding halves to the even digit, as Python does. With at most two places only eighths can be halves.
function fixed(number, places) {
  const scaled = number * 10 ** places, below = Math.floor(scaled);
  const half = Number.isInteger(8 * number) && scaled - below === 0.5;
  return half && below % 2 === 0 ? (below / 10 ** places).toFixed(places) : number.toFixed(places);
}

function formatCount(number) {
  for (const [unit, name] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (number >= unit) return threeDigits(number / unit) + name;
  return threeDigits(number);
}

function formatBytes(bytes) {
  for (const [unit, name] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]])
    if (bytes >= unit) return `${threeDigits(bytes / unit)} ${name}`;
  return `${bytes} B`;
}

// In decimal units, 1 GB = 10^9 bytes, as for the memory of cards and files of weights.
function formatDecimalBytes(bytes) {
  for (const [unit, name] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
    if (bytes >= unit) return `${threeDigits(bytes / unit)} ${name}`;
  return `${bytes} B`;
}

const formatFlops = number => formatCount(number).replace("B", "G");

const formatTokens = number =>
  number % 2 ** 20 === 0 ? `${number / 2 ** 20}M` : number % 1024 === 0 && number % 1000 ? `${number / 1024}k` : number.toLocaleString("en");

function formatChange(before, after) {
  if (before === after) return "the same";
  if (before === 0) return "new";
  const percent = 100 * (after / before - 1);
  return `${percent > 0 ? "+" : "−"}${Math.abs(percent) < 10 ? Math.abs(percent).toPrecision(2) : Math.abs(percent).toFixed(0)}%`;
}

const byId = id => document.getElementById(id);

// An element with attributes, and children that are elements or text.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A row of a table. `heads` label its cells on a phone, where the table is stacked.
function row(name, cells, heads = []) {
  const made = cells.map(cell => (cell instanceof Element ? cell : make("td", {}, cell)));
  made.forEach((cell, i) => heads[i] && cell.setAttribute("data-head", heads[i]));
  return make("tr", {}, make("th", {scope: "row"}, name), ...made);
}

const numberCell = text => make("td", {class: "number"}, text);

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, label]) => make("option", {value}, label)));
  if (chosen !== undefined) select.value = chosen;
}

// All models in a select, grouped by architecture.
function modelOptions(select, chosen) {
  select.replaceChildren(...DATA.families.map(family =>
    make("optgroup", {label: family.title}, ...family.models.map(name => make("option", {value: name}, name)))));
  select.value = chosen;
}

// The items of a list for readers: "a, b and c".
const listed = items => (items.length > 1 ? `${items.slice(0, -1).join(", ")} and ${items.at(-1)}` : items.join(""));

// A slider over a list of values, with the value as text beside it; `changed` is called after each move.
function slider(id, values, chosen, show, changed) {
  const input = byId(id), shown = byId(`${id}-shown`);
  input.min = 0; input.max = values.length - 1; input.value = values.indexOf(chosen);
  const showValue = () => {
    const text = show(values[input.value]);
    shown.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  input.addEventListener("input", () => { showValue(); changed(); });
  showValue();
  return {
    values,
    get value() { return values[input.value]; },
    set value(value) { input.value = values.indexOf(value); showValue(); },
  };
}
