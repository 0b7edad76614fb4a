// The charts: Vega is handed the rows of the picked models, and draws once a chart comes into view.

const SPECS = JSON.parse(byId("specs").textContent);
const QUIET = {mode: "vega", actions: false, defaultStyle: false};
const drawn = new Map(); // chart -> the promise of what was drawn last

const picked = () => [...document.querySelectorAll("#picker input:checked")].map(input => input.value);

function records(name, names) {
  const {columns, rows} = DATA.tables[name];
  const all = rows.map(values => Object.fromEntries(columns.map((column, i) => [column, values[i]])));
  const about = ["model", "less", "more"].filter(column => columns.includes(column));
  return name === "measured" ? all : all.filter(each => about.every(column => names.includes(each[column])));
}

function settings() {
  const device = DATA.devices[byId("chart-device").value];
  return {
    batch: Number(byId("kv-batch").value), itemsize: DATA.dtypes[byId("kv-dtype").value],
    rate: device.flops, bandwidth: device.bandwidth,
  };
}

// A chart's Vega with its rows, parameters, colours and width filled in.
function filled(name, width) {
  const spec = structuredClone(SPECS[name].vega), names = picked(), set = settings();
  for (const table of SPECS[name].tables) spec.data.find(data => data.name === table).values = records(table, names);
  for (const signal of spec.signals || []) {
    if (signal.name in set) signal.value = set[signal.name];
    if (signal.name === "child_width") signal.value = Math.max(140, width - 190);
  }
  const colour = spec.scales.find(scale => scale.name === "color");
  if (SPECS[name].by_model) Object.assign(colour, {domain: names, range: names.map(each => MODELS.get(each).colour)});
  for (const legend of spec.legends || []) legend.columns = Math.max(1, Math.floor((width - 90) / 150));
  if (!(spec.signals || []).some(signal => signal.name === "child_width"))
    Object.assign(spec, {width, padding: {left: 5, top: 5, bottom: 5, right: 16}, autosize: {type: "fit-x", contains: "padding"}});
  return spec;
}

// What colours stand for, as text that wraps: a picture that is saved has it inside.
function legend(spec, figure) {
  const {domain, range} = spec.scales.find(scale => scale.name === "color");
  if (!Array.isArray(domain)) return;
  spec.legends = spec.legends?.filter(each => each.stroke !== "color" && each.fill !== "color");
  figure.querySelector(".legend").replaceChildren(...domain.map((name, i) =>
    make("li", {}, make("span", {style: `background:${range[i]}`}), name)));
}

// The rings of the first chart, for those who cannot point at them.
function crossings() {
  const found = records("crossings", picked()).sort((a, b) => a.context - b.context);
  byId("crossings").replaceChildren(...found.map(({less, more, context}) =>
    make("li", {}, `From ${context.toLocaleString("en")} tokens on ${less} has the smaller cache, and no longer ${more}.`)));
}

function draw(figure) {
  const plot = figure.querySelector(".plot"), name = figure.dataset.chart;
  if (!plot) return;
  const before = drawn.get(name), spec = filled(name, plot.clientWidth);
  legend(spec, figure);
  if (name === "kv") crossings();
  drawn.set(name, vegaEmbed(plot, spec, {...QUIET, renderer: "svg", tooltip}).then(async made => {
    (await before)?.finalize();
    plot.setAttribute("role", "img"); // with the heading as its name: axes read out one by one say nothing
    for (const name of ["aria-label", "aria-roledescription"]) plot.removeAttribute(name);
    if (plot.scrollWidth > plot.clientWidth) plot.tabIndex = 0; // so that a keyboard can scroll it
    else plot.removeAttribute("tabindex");
    return made;
  }));
  return drawn.get(name);
}

function tooltip(handler, event, item, value) {
  document.querySelector(".tooltip")?.remove();
  if (!value) return;
  const lines = Object.entries(value).flatMap(([key, text], i) => [...(i ? [make("br")] : []), `${key}: `, make("b", {}, String(text))]);
  const tip = make("div", {class: "tooltip", "aria-hidden": "true"}, ...lines);
  document.body.append(tip);
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

function save(name, blob, kind) {
  const link = make("a", {download: `${name}.${kind}`, href: URL.createObjectURL(blob)});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const quoted = value => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));

function csv(name) {
  const {columns, rows} = DATA.tables[name];
  return [columns, ...rows].map(values => values.map(quoted).join(",")).join("\n") + "\n";
}

// A picture on its own has no page to take colours from.
async function picture(name, kind) {
  const look = getComputedStyle(document.documentElement);
  const text = JSON.stringify(filled(name, 720)).replace(/var\((--\w+)\)/g, (_, colour) => look.getPropertyValue(colour).trim());
  const spec = {...JSON.parse(text), background: look.getPropertyValue("--paper").trim()};
  const {view} = await vegaEmbed(make("div"), spec, {...QUIET, renderer: "none"});
  if (kind === "svg") return new Blob([await view.toSVG()], {type: "image/svg+xml"});
  const canvas = await view.toCanvas(2);
  return new Promise(resolve => canvas.toBlob(resolve));
}

async function saving(figure, kind) {
  const name = figure.dataset.chart, table = SPECS[name].tables[0];
  save(kind === "csv" ? table : name, kind === "csv" ? new Blob([csv(table)], {type: "text/csv"}) : await picture(name, kind), kind);
}

function startCharts() {
  const typical = new Set(DATA.families.map(family => family.typical));
  byId("picker").replaceChildren(...DATA.models.map(model => {
    const box = make("input", {type: "checkbox", value: model.name});
    box.checked = typical.has(model.name);
    return make("label", {style: `--colour:${model.colour}`}, box, model.name);
  }));
  options(byId("kv-batch"), DATA.batches.map(batch => [batch, batch]), 1);
  options(byId("kv-dtype"), Object.keys(DATA.dtypes).map(name => [name, name]), "bfloat16");
  options(byId("chart-device"), Object.entries(DATA.devices).map(([key, device]) => [key, device.name]), "h100");
  const figures = [...document.querySelectorAll(".chart")];
  const again = () => figures.filter(figure => drawn.has(figure.dataset.chart)).forEach(draw);
  for (const id of ["picker", "kv-batch", "kv-dtype", "chart-device"]) byId(id).addEventListener("change", again);
  const watch = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {
    watch.unobserve(entry.target);
    draw(entry.target);
  }), {rootMargin: "600px"});
  let waiting, width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's bars came or went
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(again, 150);
  });
  for (const figure of figures) {
    watch.observe(figure);
    for (const button of figure.querySelectorAll("[data-save]")) button.addEventListener("click", () => saving(figure, button.dataset.save));
  }
}

startDiagrams();
startFit();
startSwap();
startCharts();
