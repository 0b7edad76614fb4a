// The charts: Vega gets the rows of the selected models, and draws a chart once it comes into view.

const SPECS = JSON.parse(byId("specs").textContent);
const EMBED_OPTIONS = {mode: "vega", actions: false, defaultStyle: false};
const drawn = new Map(); // chart -> the promise of its last drawing

const selectedModels = () => [...document.querySelectorAll("#picker input:checked")].map(input => input.value);

function records(name, names) {
  const {columns, rows} = DATA.tables[name];
  const all = rows.map(values => Object.fromEntries(columns.map((column, i) => [column, values[i]])));
  const modelColumns = ["model", "smaller", "larger"].filter(column => columns.includes(column));
  return name === "measured" || name.startsWith("learning") ? all : all.filter(each => modelColumns.every(column => names.includes(each[column])));
}

function chartParams() {
  const device = DATA.devices[byId("chart-device").value];
  return {
    batch: Number(byId("kv-batch").value), itemsize: DATA.dtypes[byId("kv-dtype").value],
    rate: device.flops, bandwidth: device.bandwidth,
  };
}

// A chart's Vega specification with its rows, parameters, colours and width.
function chartSpec(name, width) {
  const spec = structuredClone(SPECS[name].vega), names = selectedModels(), params = chartParams();
  for (const table of SPECS[name].tables) spec.data.find(data => data.name === table).values = records(table, names);
  for (const signal of spec.signals || []) {
    if (signal.name in params) signal.value = params[signal.name];
    if (signal.name === "child_width") signal.value = Math.max(140, width - 190);
  }
  const colour = spec.scales.find(scale => scale.name === "color");
  if (SPECS[name].by_model) Object.assign(colour, {domain: names, range: names.map(each => MODELS.get(each).colour)});
  for (const legend of spec.legends || []) legend.columns = Math.max(1, Math.floor((width - 90) / 150));
  if (!(spec.signals || []).some(signal => signal.name === "child_width"))
    Object.assign(spec, {width, padding: {left: 5, top: 5, bottom: 5, right: 16}, autosize: {type: "fit-x", contains: "padding"}});
  return spec;
}

// The legend of the colours as HTML, which wraps; in a saved picture Vega draws it.
function legend(spec, figure) {
  const {domain, range} = spec.scales.find(scale => scale.name === "color");
  if (!Array.isArray(domain)) return;
  spec.legends = spec.legends?.filter(each => each.stroke !== "color" && each.fill !== "color");
  figure.querySelector(".legend").replaceChildren(...domain.map((name, i) =>
    make("li", {}, make("span", {style: `background:${range[i]}`}), name)));
}

// The crossings of the first chart as text, for readers who cannot point at a ring.
function crossings() {
  const rows = records("crossings", selectedModels()).sort((a, b) => a.context - b.context);
  byId("crossings").replaceChildren(...rows.map(({smaller, larger, context}) =>
    make("li", {}, `From ${context.toLocaleString("en")} tokens on, ${smaller} has a smaller cache than ${larger}.`)));
}

function draw(figure) {
  const plot = figure.querySelector(".plot"), name = figure.dataset.chart;
  if (!plot) return;
  const before = drawn.get(name), spec = chartSpec(name, plot.clientWidth);
  legend(spec, figure);
  if (name === "kv") crossings();
  drawn.set(name, vegaEmbed(plot, spec, {...EMBED_OPTIONS, renderer: "svg", tooltip}).then(async result => {
    (await before)?.finalize();
    plot.setAttribute("role", "img"); // named by its heading: axes read out one by one are of no use
    for (const name of ["aria-label", "aria-roledescription"]) plot.removeAttribute(name);
    if (plot.scrollWidth > plot.clientWidth) plot.tabIndex = 0; // so that a keyboard can scroll it
    else plot.removeAttribute("tabindex");
    return result;
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

// A saved picture cannot take colours from the page's style sheet.
async function picture(name, kind) {
  const pageStyle = getComputedStyle(document.documentElement);
  const text = JSON.stringify(chartSpec(name, 720)).replace(/var\((--\w+)\)/g, (_, colour) => pageStyle.getPropertyValue(colour).trim());
  const spec = {...JSON.parse(text), background: pageStyle.getPropertyValue("--paper").trim()};
  const {view} = await vegaEmbed(make("div"), spec, {...EMBED_OPTIONS, renderer: "none"});
  if (kind === "svg") return new Blob([await view.toSVG()], {type: "image/svg+xml"});
  const canvas = await view.toCanvas(2);
  return new Promise(resolve => canvas.toBlob(resolve));
}

async function saveChart(figure, kind) {
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
  const redraw = () => figures.filter(figure => drawn.has(figure.dataset.chart)).forEach(draw);
  for (const id of ["picker", "kv-batch", "kv-dtype", "chart-device"]) byId(id).addEventListener("change", redraw);
  const observer = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {
    observer.unobserve(entry.target);
    draw(entry.target);
  }), {rootMargin: "600px"});
  let timer, width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // only a phone's browser bars appeared or disappeared
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(redraw, 150);
  });
  for (const figure of figures) {
    observer.observe(figure);
    for (const button of figure.querySelectorAll("[data-save]")) button.addEventListener("click", () => saveChart(figure, button.dataset.save));
  }
}

startDiagrams();
startFit();
startSwap();
startCharts();
