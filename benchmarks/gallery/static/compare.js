// Two models side by side: differences in structure, then in sizes, then in costs.

const NARROW = matchMedia("(max-width: 720px)"); // then diagrams have one column
const layout = () => (NARROW.matches ? "narrow" : "wide");

// A copy of a model's diagram: "plain", or a "figure" with notes. Its ids get a prefix, because the page may hold
// several copies.
function diagram(name, prefix, kind = "plain") {
  const template = make("template");
  template.innerHTML = PACKED.diagrams[name][layout()][kind];
  const copy = template.content.firstElementChild;
  const labels = copy.getAttribute("aria-labelledby").split(" ");
  for (const label of labels) copy.querySelector(`#${label}`).id = prefix + label;
  copy.setAttribute("aria-labelledby", labels.map(label => prefix + label).join(" "));
  return copy;
}

function drawing(svg, label) {
  return make("div", {class: "drawing", tabindex: "0", role: "group", "aria-label": label}, svg);
}

function marked(name, other, prefix) {
  const svg = diagram(name, prefix), elements = svg.querySelectorAll("*");
  const [differing, resized] = MODELS.get(name).marked[layout()][DATA.models.findIndex(model => model.name === other)];
  for (const i of differing) elements[i].classList.add("differs");
  for (const i of resized) elements[i].classList.add("resized");
  return svg;
}

function table(caption, heads, rows) {
  const right = rows[0]?.querySelector(".number") ? "number" : "";
  const head = make("thead", {}, make("tr", {}, ...heads.map((text, i) => make("th", {scope: "col", class: i ? right : ""}, text))));
  const element = make("table", {class: "stack"}, make("caption", {}, caption), head, make("tbody", {}, ...rows));
  return make("div", {class: "scroll", tabindex: "0", role: "group", "aria-label": caption}, element);
}

// The fields that differ, with the first model's value first.
function differences(first, second) {
  const {strings, differences} = DATA.comparisons;
  const inOrder = differences[`${first} ${second}`];
  const rows = inOrder || differences[`${second} ${first}`] || [];
  return rows.map(indices => indices.map(index => strings[index]))
    .map(([field, value, other]) => (inOrder ? [field, value, other] : [field, other, value]));
}

function costs(first, second) {
  const format = (value, unit) => ({bytes: formatBytes, FLOPs: formatFlops}[unit] || formatCount)(value);
  const [ours, others] = [first, second].map(name => MODELS.get(name).costs), heads = [first, second, "ratio"];
  return DATA.comparisons.costs.map(([figure, unit], i) => [figure, unit, ours[i], others[i]])
    .filter(([, , a, b]) => a !== b)
    .map(([figure, unit, a, b]) => row(figure, [format(a, unit), format(b, unit), a ? (b / a).toPrecision(3) : ""].map(numberCell), heads));
}

// The structural differences of the second model from the first: a sentence for each, by part.
function structure(first, second) {
  const rows = (DATA.comparisons.structure[`${first} ${second}`] || []).map(indices => indices.map(index => DATA.comparisons.strings[index]));
  if (!rows.length) return [make("p", {}, first === second ? "" : `The structure of ${second} is that of ${first}: only sizes differ.`)];
  const parts = [...new Set(rows.map(([part]) => part))].map(part => [part, rows.filter(each => each[0] === part)]);
  const list = parts.flatMap(([part, sentences]) => [make("dt", {}, part), make("dd", {}, ...sentences.map(([, sentence]) => make("p", {}, sentence)))]);
  return [make("p", {class: "structure-head"}, make("strong", {}, second), " compared with ", make("strong", {}, first), ":"), make("dl", {class: "structure"}, ...list)];
}

function compare() {
  const first = byId("first").value, second = byId("second").value;
  byId("diagrams").replaceChildren(...[[first, second, "first-"], [second, first, "second-"]].map(([name, other, prefix]) =>
    make("figure", {}, drawing(marked(name, other, prefix), `Diagram of ${name}, with differences from ${other} marked`))));
  const fields = differences(first, second).map(([field, a, b]) => row(field, [a ?? "", b ?? ""], [first, second]));
  byId("structure").replaceChildren(...structure(first, second));
  const figures = costs(first, second);
  const smaller = DATA.comparisons.caches[`${first} ${second}`] || DATA.comparisons.caches[`${second} ${first}`] || "";
  const note = make("p", {class: "note"}, `At ${formatTokens(DATA.comparisons.context)} tokens of context, in bfloat16; ceilings on one ${DATA.comparisons.device}, whether or not it fits. Smaller cache: ${smaller || "both are equal."}`);
  const left = fields.length
    ? make("details", {class: "sizes"}, make("summary", {}, `Sizes and details: ${fields.length} differ`), table("Sizes and details", ["field", first, second], fields))
    : make("p", {}, "Their specs are equal.");
  const right = figures.length ? table("What it costs", ["cost", first, second, "ratio"], figures) : make("p", {}, "Their costs are equal.");
  byId("differences").replaceChildren(make("div", {}, left), make("div", {}, right, note));
  byId("compare-code").textContent = `python -m benchmarks compare ${first} ${second}`;
  byId("compared").textContent = `${second} compared with ${first}: ${byId("structure").querySelectorAll("dd p").length} differences in structure, ${fields.length} fields.`;
  for (const button of byId("pairs").children)
    button.setAttribute("aria-pressed", String(button.dataset.pair === `${first} ${second}`));
}

function comparePair(first, second) {
  byId("first").value = first;
  byId("second").value = second;
  compare();
  changed("compare");
}

function startCompare() {
  const [first, second] = DATA.pairs[1] || DATA.pairs[0] || [0, -1].map(i => DATA.models.at(i).name);
  modelOptions(byId("first"), first);
  modelOptions(byId("second"), second);
  const set = text => {
    const names = text.split(",");
    if (names.length !== 2 || !names.every(name => MODELS.has(name))) return false;
    [byId("first").value, byId("second").value] = names;
    return true;
  };
  remember("compare", "compare", () => `${byId("first").value},${byId("second").value}`, set, compare);
  for (const id of ["first", "second"]) byId(id).addEventListener("change", () => { compare(); changed("compare"); });
  byId("pairs").replaceChildren(...DATA.pairs.map(([a, b]) => {
    const button = make("button", {type: "button", "data-pair": `${a} ${b}`}, `${a} and ${b}`);
    button.addEventListener("click", () => comparePair(a, b));
    return button;
  }));
  NARROW.addEventListener("change", compare);
  compare();
}
