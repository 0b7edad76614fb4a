// The cards of the architectures, and two diagrams side by side.

// A copy of a model's diagram. Its ids get a prefix, because the page may hold several copies.
function diagram(name, prefix) {
  const template = [...document.querySelectorAll("template")].find(each => each.dataset.diagram === name);
  const copy = template.content.firstElementChild.cloneNode(true);
  const labels = copy.getAttribute("aria-labelledby").split(" ");
  for (const label of labels) copy.querySelector(`#${label}`).id = prefix + label;
  copy.setAttribute("aria-labelledby", labels.map(label => prefix + label).join(" "));
  return copy;
}

function drawing(svg, label) {
  return make("div", {class: "drawing", tabindex: "0", role: "group", "aria-label": label}, svg);
}

function card(family) {
  const select = make("select", {"aria-label": `Size of ${family.title}`});
  options(select, family.models.map(name => [name, name]), family.typical);
  const place = make("div");
  const draw = () => place.replaceChildren(drawing(diagram(select.value, `card-${family.name}-`), `Diagram of ${select.value}`));
  select.addEventListener("change", draw);
  draw();
  const source = make("span", {class: "source"}, family.source);
  const top = make("div", {class: "top"}, make("h3", {}, family.title, " ", source), select);
  return make("article", {class: "architecture", "data-family": family.name}, top, make("p", {}, family.new), place);
}

function marked(name, other, prefix) {
  const svg = diagram(name, prefix), elements = svg.querySelectorAll("*");
  for (const i of MODELS.get(name).differing[DATA.models.findIndex(model => model.name === other)])
    elements[i].classList.add("differs");
  return svg;
}

function table(caption, heads, rows) {
  const right = rows[0]?.querySelector(".number") ? "number" : "";
  const head = make("thead", {}, make("tr", {}, ...heads.map((text, i) => make("th", {scope: "col", class: i ? right : ""}, text))));
  const element = make("table", {}, make("caption", {}, caption), head, make("tbody", {}, ...rows));
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
  const [ours, others] = [first, second].map(name => MODELS.get(name).costs);
  return DATA.comparisons.costs.map(([figure, unit], i) => [figure, unit, ours[i], others[i]])
    .filter(([, , a, b]) => a !== b)
    .map(([figure, unit, a, b]) => row(figure, [numberCell(format(a, unit)), numberCell(format(b, unit)), numberCell(a ? (b / a).toPrecision(3) : "")]));
}

function compare() {
  const first = byId("first").value, second = byId("second").value;
  byId("diagrams").replaceChildren(...[[first, second, "first-"], [second, first, "second-"]].map(([name, other, prefix]) =>
    make("figure", {}, drawing(marked(name, other, prefix), `Diagram of ${name}, with differences from ${other} marked`))));
  const fields = differences(first, second).map(([field, a, b]) => row(field, [a ?? "", b ?? ""]));
  const figures = costs(first, second);
  const smaller = DATA.comparisons.caches[`${first} ${second}`] || DATA.comparisons.caches[`${second} ${first}`] || "";
  const note = make("p", {class: "note"}, `At ${formatTokens(DATA.comparisons.context)} tokens of context, in bfloat16; ceilings on one ${DATA.comparisons.device}. Smaller cache: ${smaller || "both are equal."}`);
  const left = fields.length ? table("What differs", ["field", first, second], fields) : make("p", {}, "Their specs are equal.");
  const right = figures.length ? table("What it costs", ["cost", first, second, "ratio"], figures) : make("p", {}, "Their costs are equal.");
  byId("differences").replaceChildren(make("div", {}, left), make("div", {}, right, note));
  byId("compare-code").textContent = `python -m benchmarks compare ${first} ${second}`;
  byId("compared").textContent = `${first} and ${second}: ${fields.length} fields differ.`;
  for (const button of byId("pairs").children)
    button.setAttribute("aria-pressed", String(button.dataset.pair === `${first} ${second}`));
}

function startDiagrams() {
  byId("cards").replaceChildren(...DATA.families.map(card));
  const [first, second] = DATA.pairs[1] || DATA.pairs[0] || [0, -1].map(i => DATA.models.at(i).name);
  modelOptions(byId("first"), first);
  modelOptions(byId("second"), second);
  byId("first").addEventListener("change", compare);
  byId("second").addEventListener("change", compare);
  byId("pairs").replaceChildren(...DATA.pairs.map(([a, b]) => {
    const button = make("button", {type: "button", "data-pair": `${a} ${b}`}, `${a} and ${b}`);
    button.addEventListener("click", () => { byId("first").value = a; byId("second").value = b; compare(); });
    return button;
  }));
  compare();
}
