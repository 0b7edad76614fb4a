// The charts: Vega gets the rows of the selected models, and draws a chart when the reader scrolls near it.

const SPECS = PACKED.specs;
const EMBED_OPTIONS = {mode: "vega", actions: false, defaultStyle: false};
const SHAPES = {circle: "○", square: "□", "triangle-up": "△", cross: "✚"}; // Vega's names of the shapes that marks have
const LABELS_FROM = 620, LETTER = 6.6, LEAST_GAP = 10, LEADER = 26; // pixels; the first is the least plot width with names beside lines
const MOST_RINGED = 8; // models whose crossings are marked in the chart
const drawn = new Map(); // chart -> the promise of its last drawing

const selectedModels = () => [...document.querySelectorAll("#picker input:checked")].map(input => input.value);

function records(name, names) {
  const {columns, rows} = DATA.tables[name];
  const all = rows.map(values => Object.fromEntries(columns.map((column, i) => [column, values[i]])));
  if (name === "measured") return all.filter(each => each.workload === byId("workload").value);
  if (name.startsWith("learning")) return all;
  const modelColumns = ["model", "smaller", "larger"].filter(column => columns.includes(column));
  return all.filter(each => modelColumns.every(column => names.includes(each[column])));
}

function chartParams() {
  const device = DATA.devices[byId("chart-device").value];
  return {
    batch: Number(byId("kv-batch").value), itemsize: DATA.dtypes[byId("kv-dtype").value],
    rate: device.flops, bandwidth: device.bandwidth,
    rings: selectedModels().length > MOST_RINGED ? 0 : 1, // more rings are hard to tell apart: see the list below
  };
}

// Line charts: the x and y of a row, and the format of y.
const LINES = {
  kv: {x: "context", y: row => { const {batch, itemsize} = chartParams(); return (row.elements * itemsize + row.float32_bytes) * batch; }, show: formatBytes},
  flops: {x: "context", y: row => row.flops, show: formatFlops},
  "learning-by-tokens": {x: "tokens", y: row => row.bits_per_byte, show: value => `${value.toFixed(3)} bits per byte`},
  "learning-by-flops": {x: "flops", y: row => row.bits_per_byte, show: value => `${value.toFixed(3)} bits per byte`},
  "learning-accuracy": {x: "size", y: row => row.mean, show: value => `${(100 * value).toFixed(1)} % right`},
  "learning-by-seconds": {x: "seconds", y: row => row.bits_per_byte, show: value => `${value.toFixed(3)} bits per byte`},
};
// A chart of several panels has no scale "x" of its own, so a pointer cannot follow its lines.
for (const name of Object.keys(LINES)) if (!SPECS[name]?.vega.scales?.some(scale => scale.name === "x")) delete LINES[name];
const showX = {size: value => `size ${value}`, context: value => `${formatTokens(value)} tokens`, tokens: value => `${formatCount(value)} tokens`, flops: value => `${formatFlops(value)}FLOPs`, seconds: value => `${threeDigits(value)} s`};

const labelled = (name, width, count) => name in LINES && width >= LABELS_FROM && count > 0;

// The names of the lines in a line chart, in the order of their rows.
const linesOf = name => [...new Set(records(SPECS[name].tables[0], selectedModels()).map(row => row.model))];

const labelRoom = names => LEADER + 12 + LETTER * Math.max(...names.map(name => name.length));

// A chart's Vega specification with its rows, parameters, colours and width.
function chartSpec(name, width, labels = false) {
  const spec = structuredClone(SPECS[name].vega), names = selectedModels(), params = chartParams();
  for (const table of SPECS[name].tables) spec.data.find(data => data.name === table).values = records(table, names);
  for (const signal of spec.signals || []) {
    if (signal.name in params) signal.value = params[signal.name];
    if (signal.name === "child_width") signal.value = Math.max(140, width - 190);
  }
  const scale = wanted => spec.scales?.find(each => each.name === wanted);
  if (SPECS[name].by_model) Object.assign(scale("color"), {domain: names, range: names.map(each => MODELS.get(each).colour)});
  if (name === "measured") { // one range, and the same colours, for all workloads
    scale("x").domain = measuredDomain();
    scale("color").domain = [...new Set(column("measured", "how"))];
  }
  for (const legend of spec.legends || []) legend.columns = Math.max(1, Math.floor((width - 90) / 150));
  if (!(spec.signals || []).some(signal => signal.name === "child_width"))
    Object.assign(spec, {width, padding: {left: 5, top: 5, bottom: 5, right: labels ? labelRoom(linesOf(name)) : 16}, autosize: {type: "fit-x", contains: "padding"}});
  return spec;
}

// All values of a column of a table.
const column = (table, name) => DATA.tables[table].rows.map(row => row[DATA.tables[table].columns.indexOf(name)]);

function measuredDomain() {
  const values = ["low", "high", "ceiling"].flatMap(name => column("measured", name)).filter(value => value > 0);
  return [Math.min(...values) / 1.15, Math.max(...values) * 1.15];
}

// The height of a chart. It is set before the chart is drawn, so that nothing below moves later.
function plotHeight(name) {
  const {height, row, axis} = SPECS[name];
  if (!row) return height + axis;
  return row * new Set(records(SPECS[name].tables[0], selectedModels()).map(each => each.model)).size + axis;
}

// The legend of colours and shapes, as HTML that wraps. In a saved picture, Vega draws the legend.
function legend(spec, name, figure, width) {
  const scale = wanted => spec.scales?.find(each => each.name === wanted);
  const items = [], colours = scale("color");
  const shown = colours && Array.isArray(colours.domain) && !["active", "ceilings"].includes(name);
  if (shown) items.push(...colours.domain.map((each, i) => make("li", {}, make("span", {class: "line", style: `background:${colours.range[i % colours.range.length]}`}), each)));
  const shapes = scale("shape");
  if (shapes) items.push(...shapes.domain.map((pass, i) => make("li", {}, make("span", {class: "shape"}, SHAPES[shapes.range[i]]), pass)));
  spec.legends = [];
  const list = figure.querySelector(".legend");
  list.replaceChildren(...items);
  list.hidden = labelled(name, width, colours?.domain?.length ?? 0);
}

// The crossings of the first chart as text, for readers who cannot point at a ring.
function crossings() {
  const rows = records("crossings", selectedModels()).sort((a, b) => a.context - b.context);
  byId("crossings").replaceChildren(...rows.map(({smaller, larger, context}) =>
    make("li", {}, `From ${context.toLocaleString("en")} tokens on, ${smaller} has a smaller cache than ${larger}.`)));
}

// Load Vega before the first chart is drawn.
function loadVega() {
  if (!globalThis.vegaEmbed) runScript(PACKED.vega);
}

// Set a chart's legend and height before it is drawn.
function prepare(figure) {
  const plot = figure.querySelector(".plot"), name = figure.dataset.chart;
  if (!plot) return null;
  const labels = name in LINES && labelled(name, plot.clientWidth, linesOf(name).length);
  const spec = chartSpec(name, plot.clientWidth, labels);
  legend(spec, name, figure, plot.clientWidth);
  plot.style.height = `${plotHeight(name)}px`;
  return {plot, name, spec, labels};
}

function draw(figure) {
  const prepared = prepare(figure);
  if (!prepared) return null;
  loadVega();
  const {plot, name, spec, labels} = prepared, before = drawn.get(name);
  if (name === "kv") crossings();
  drawn.set(name, vegaEmbed(plot, spec, {...EMBED_OPTIONS, renderer: "svg", tooltip: name in LINES ? ringTooltip : tooltip}).then(async result => {
    (await before)?.finalize();
    plot.setAttribute("role", "img"); // its heading names it; reading out its axes one by one would not help
    for (const attribute of ["aria-label", "aria-roledescription"]) plot.removeAttribute(attribute);
    if (labels) nameLines(name, plot, result.view);
    if (plot.scrollWidth > plot.clientWidth || name in LINES) plot.tabIndex = 0; // so that a keyboard can scroll it
    else plot.removeAttribute("tabindex");
    return result;
  }));
  return drawn.get(name);
}

// Draw names beside the ends of lines, moved apart so that they do not overlap.
function nameLines(name, plot, view) {
  const {x, y} = LINES[name], area = plotArea(plot), colour = view.scale("color");
  const ends = new Map();
  for (const row of records(SPECS[name].tables[0], selectedModels()))
    if (!ends.has(row.model) || row[x] > ends.get(row.model)[x]) ends.set(row.model, row);
  const labels = [...ends].map(([model, row]) => ({model, at: view.scale("y")(y(row))})).sort((a, b) => a.at - b.at);
  const gap = Math.min(12.5, Math.max(LEAST_GAP, area.height / labels.length));
  const places = spread(labels.map(each => each.at), gap, 0, area.height + 30);
  const svg = plot.querySelector("svg"), group = document.createElementNS(svg.namespaceURI, "g");
  group.setAttribute("class", "line-names");
  labels.forEach(({model, at}, i) => {
    const line = document.createElementNS(svg.namespaceURI, "path"), text = document.createElementNS(svg.namespaceURI, "text");
    line.setAttribute("d", `M${area.left + area.width + 2} ${area.top + at}L${area.left + area.width + LEADER} ${area.top + places[i]}h4`);
    line.setAttribute("stroke", colour(model));
    text.setAttribute("x", area.left + area.width + LEADER + 7);
    text.setAttribute("y", area.top + places[i] + 3.6);
    text.textContent = model;
    group.append(line, text);
  });
  svg.append(group);
}

// Places in order, at least `gap` apart and within the bounds, with the least sum of squared distances from the wanted
// places. Less the gaps, places must not decrease; neighbours that would are pooled at their mean (isotonic regression).
function spread(wanted, gap, low, high) {
  const pools = [];
  for (const [i, each] of wanted.entries()) {
    let pool = {sum: each - i * gap, count: 1};
    while (pools.length && pools.at(-1).sum / pools.at(-1).count > pool.sum / pool.count) {
      const last = pools.pop();
      pool = {sum: last.sum + pool.sum, count: last.count + pool.count};
    }
    pools.push(pool);
  }
  const starts = pools.flatMap(({sum, count}) => Array(count).fill(sum / count));
  const highest = Math.max(high - (wanted.length - 1) * gap, low);
  return starts.map((start, i) => Math.min(Math.max(start, low), highest) + i * gap);
}

// The frame of the axes, in the coordinates of the plot's svg.
function plotArea(plot) {
  const frame = plot.querySelector("svg .root > g > .background").getBoundingClientRect(), svg = plot.querySelector("svg").getBoundingClientRect();
  return {left: frame.left - svg.left, top: frame.top - svg.top, width: frame.width, height: frame.height};
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
  if (byId("workload")) {
    const counts = new Map();
    for (const workload of column("measured", "workload")) counts.set(workload, (counts.get(workload) ?? 0) + 1);
    options(byId("workload"), [...counts].sort((a, b) => b[1] - a[1]).map(([name]) => [name, name]));
  }
  const figures = [...document.querySelectorAll(".chart")];
  const redraw = () => {
    showPicked();
    for (const figure of figures) if (drawn.has(figure.dataset.chart)) draw(figure); else prepare(figure);
  };
  const boxes = () => [...document.querySelectorAll("#picker input")];
  rememberSet("models", "charts", selectedModels, names => boxes().forEach(box => { box.checked = names.includes(box.value); }), redraw);
  byId("picker").addEventListener("change", () => { redraw(); changed("models"); });
  for (const [name, id] of [["chart.sequences", "kv-batch"], ["chart.cache", "kv-dtype"], ["chart.device", "chart-device"], ["workload", "workload"]])
    if (byId(id)) rememberSelect(name, "charts", byId(id), redraw);
  const pick = chooses => { boxes().forEach(box => { box.checked = chooses(box.value); }); redraw(); changed("models"); };
  byId("pick-typical").addEventListener("click", () => pick(name => typical.has(name)));
  byId("pick-none").addEventListener("click", () => pick(() => false));
  showPicked();
  figures.forEach(prepare);
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
    if (figure.dataset.chart in LINES) followPointer(figure);
    for (const button of figure.querySelectorAll("[data-save]")) button.addEventListener("click", () => saveChart(figure, button.dataset.save));
  }
}

const showPicked = () => { byId("picked").textContent = `${selectedModels().length} of ${DATA.models.length}`; };
