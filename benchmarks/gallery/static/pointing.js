// Tooltips in charts, by pointer, finger or arrow keys: the nearest line's value, or the meaning of a mark.

function tooltip(handler, event, item, value) {
  closeTooltip();
  if (!value) return;
  showTooltip(event.clientX, event.clientY, Object.entries(value).flatMap(([key, text], i) => [...(i ? [make("br")] : []), `${key}: `, make("b", {}, String(text))]));
}

// In line charts, Vega's own tooltips are for rings only. The tooltip of lines shows the nearest line.
function ringTooltip(handler, event, item, value) {
  if (item?.mark?.marktype === "symbol" && value && "than" in value) tooltip(handler, event, item, value);
}

const closeTooltip = () => document.querySelector(".tooltip")?.remove();

function showTooltip(x, y, content) {
  closeTooltip();
  const tip = make("div", {class: "tooltip", "aria-hidden": "true"}, ...content);
  document.body.append(tip);
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.min(y + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

// The points of each line of a chart, in pixels of its frame.
function linePoints(name, view) {
  const {x, y} = LINES[name], [scaleX, scaleY] = [view.scale("x"), view.scale("y")], lines = new Map();
  for (const row of records(SPECS[name].tables[0], selectedModels())) {
    const value = y(row);
    if (value === null || !(value > 0)) continue;
    if (!lines.has(row.model)) lines.set(row.model, []);
    lines.get(row.model).push({model: row.model, x: scaleX(row[x]), y: scaleY(value), at: row[x], value});
  }
  return [...lines.values()];
}

const nearestOf = (points, distance) => points.reduce((best, point) => (distance(point) < distance(best) ? point : best));

function followPointer(figure) {
  const name = figure.dataset.chart, plot = figure.querySelector(".plot"), status = make("p", {class: "visually-hidden", role: "status"});
  figure.append(status);
  let current = null;
  const clear = () => { closeTooltip(); plot.querySelector(".crosshair")?.remove(); current = null; };
  const show = (point, area, spoken) => {
    if (!point) return clear();
    current = point;
    const svg = plot.querySelector("svg"), frame = svg.getBoundingClientRect();
    plot.querySelector(".crosshair")?.remove();
    const group = document.createElementNS(svg.namespaceURI, "g");
    group.setAttribute("class", "crosshair");
    group.innerHTML = `<path d="M${area.left + point.x} ${area.top}v${area.height}"/><circle cx="${area.left + point.x}" cy="${area.top + point.y}" r="4.5"/>`;
    svg.append(group);
    const text = [showX[LINES[name].x](point.at), LINES[name].show(point.value)];
    showTooltip(frame.left + area.left + point.x, frame.top + area.top + point.y, [make("b", {}, point.model), make("br"), text.join(": ")]);
    if (spoken) status.textContent = `${point.model}, ${text.join(": ")}`;
  };
  const view = async () => (await drawn.get(name))?.view;
  const follow = async event => {
    const shown = await view();
    if (!shown) return;
    const area = plotArea(plot), box = plot.querySelector("svg").getBoundingClientRect();
    const x = event.clientX - box.left - area.left, y = event.clientY - box.top - area.top;
    if (x < -12 || y < -12 || x > area.width + 12 || y > area.height + 12) return clear();
    const near = linePoints(name, shown).map(points => nearestOf(points, point => Math.abs(point.x - x)));
    if (near.length) show(nearestOf(near, point => Math.hypot(point.y - y, 0.3 * (point.x - x))), area, false);
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") clear(); });
  plot.addEventListener("blur", clear);
  // Left and right move along the line; up and down move to the next line at the same x.
  plot.addEventListener("keydown", async event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (event.key === "Escape") return clear();
    if (!step) return;
    event.preventDefault();
    const lines = linePoints(name, await view());
    if (!lines.length) return;
    const own = current ? lines.find(points => points[0].model === current.model) ?? lines[0] : lines[0];
    const at = current ? nearestOf(own, point => Math.abs(point.x - current.x)) : own[0];
    const along = own[Math.min(Math.max(own.indexOf(at) + (current ? step[0] : 0), 0), own.length - 1)];
    const column = lines.map(points => nearestOf(points, point => Math.abs(point.x - along.x))).sort((a, b) => a.y - b.y);
    const next = Math.min(Math.max(column.findIndex(point => point.model === own[0].model) + step[1], 0), column.length - 1);
    show(step[1] ? column[next] : along, plotArea(plot), true);
  });
  addEventListener("scroll", () => { if (current) clear(); }, {passive: true});
}
