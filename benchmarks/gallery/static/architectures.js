// The architectures in order of release, arcs from each to its counterpart, and the chosen one's diagram and facts.

const WIDE = matchMedia("(min-width: 1080px)"); // wide: the chosen architecture stands beside the list, not inside it
const entriesOf = () => [...document.querySelectorAll("#timeline .entry")];
const familyOf = name => DATA.families.find(family => family.models.includes(name));
const openButton = entry => entry.querySelector(".open");
let chosenSize = null;

const features = () => [...document.querySelectorAll("#features button[aria-pressed=true]")].map(button => button.value);

// Show the entries that have all chosen features.
function filterEntries() {
  const wanted = features();
  for (const entry of entriesOf()) entry.hidden = !wanted.every(each => entry.dataset.features.split("|").includes(each));
  const shown = entriesOf().filter(entry => !entry.hidden).length;
  byId("timeline-count").textContent = wanted.length ? `${shown} of ${entriesOf().length} have ${listed(wanted)}` : `all ${shown}`;
  byId("timeline").classList.toggle("to-scale", byId("to-scale").checked);
  drawArcs();
}

function fact(term, ...content) {
  return content.length && content[0] !== null && content[0] !== "" ? [make("dt", {}, term), make("dd", {}, ...content)] : [];
}

// An explanation of a number, which opens by touch and by keyboard.
const why = text => (text ? [" ", make("details", {class: "why"}, make("summary", {}, "why?"), make("span", {}, text))] : []);

function facts(model) {
  const layers = released(model), fixedBytes = sums.cacheFixed(layers, 2), perToken = sums.cachePerToken(layers, 2);
  const bytes = [fixedBytes ? `${formatBytes(fixedBytes)} fixed` : "", perToken ? `${formatBytes(perToken)} per token` : ""].filter(Boolean);
  const active = sums.activeParams(layers), all = sums.params(layers), {facts: told} = model;
  const link = (url, text) => make("a", {href: url, rel: "noreferrer"}, text);
  return make("dl", {class: "facts"},
    ...fact("released", told.released), ...fact("licence", told.licence),
    ...fact("parameters", formatCount(all)),
    ...(active < all ? fact("active", formatCount(active), ...why(told.why_active)) : []),
    ...fact("KV cache", bytes.join(" + "), ...why(told.why_cache)),
    ...fact("FLOPs per token", `${formatFlops(sums.flops(layers, 4096))} at 4k`, ...why(told.why_flops)),
    ...fact("context", model.context ? `${model.context.toLocaleString("en")} tokens` : "not limited", ...why(told.why_context)),
    ...fact("vocabulary", `${told.vocabulary.toLocaleString("en")} tokens`),
    ...fact("weights", `${formatDecimalBytes(weightBytes(onCards(model, 1), formOf(model, "released")))} in ${formOf(model, "released").label}`),
    ...(told.hub ? fact("files", link(`https://huggingface.co/${told.hub}`, told.hub), ", ", link(`https://huggingface.co/${told.hub}/blob/main/config.json`, "config")) : []),
    ...(told.report ? fact("report", link(told.report, told.report.replace(/^https?:\/\/(www\.)?/, ""))) : []),
    ...fact("not built here", told.left_out), ...fact("not certain", told.note));
}

// Show the chosen size beside the list or, on a narrow screen, below its entry.
function showChosen() {
  const model = MODELS.get(chosenSize), family = familyOf(chosenSize), panel = byId("chosen");
  for (const entry of entriesOf()) {
    const own = entry.dataset.family === family.name;
    entry.classList.toggle("is-chosen", own);
    openButton(entry).setAttribute("aria-expanded", String(own && !panel.hidden));
  }
  const place = WIDE.matches ? byId("beside") : entriesOf().find(entry => entry.dataset.family === family.name);
  if (panel.parentElement !== place) place.append(panel);
  byId("chosen-title").textContent = family.title;
  const select = byId("chosen-size");
  if (select.dataset.family !== family.name) {
    options(select, family.models.map(name => [name, name]));
    select.dataset.family = family.name;
  }
  select.value = chosenSize;
  byId("chosen-new").textContent = family.new;
  byId("chosen-facts").replaceChildren(facts(model));
  byId("chosen-diagram").replaceChildren(drawing(diagram(chosenSize, "beside-", "figure"), `Diagram of ${chosenSize}`));
  const before = family.compared_with && DATA.families.find(each => each.name === family.compared_with);
  const button = byId("chosen-compare");
  button.hidden = !before;
  if (before) {
    button.textContent = `Compare with ${before.title}`;
    button.dataset.with = before.typical;
  }
  drawArcs();
}

function choose(name) {
  chosenSize = name;
  byId("chosen").hidden = false;
  showChosen();
}

// Each counterpart has a vertical line down to the last architecture that is compared with it, with a branch to each.
// Lines that overlap vertically stand side by side, short lines nearest to the list.
function drawArcs() {
  const timeline = byId("timeline"), svg = byId("arcs"), top = timeline.getBoundingClientRect().top, places = new Map();
  for (const entry of entriesOf())
    if (!entry.hidden) places.set(entry.dataset.family, entry.querySelector(".dot").getBoundingClientRect().top - top + 5);
  const compared = new Map();
  for (const {name, compared_with} of DATA.families)
    if (places.has(name) && places.has(compared_with)) compared.set(compared_with, [...(compared.get(compared_with) ?? []), name]);
  const lines = [...compared].map(([name, after]) => ({name, after, from: places.get(name), to: Math.max(...after.map(each => places.get(each)))}));
  const rail = parseFloat(getComputedStyle(timeline).getPropertyValue("--rail")), dots = rail - 10, tracks = [];
  for (const line of lines.sort((a, b) => a.to - a.from - (b.to - b.from))) {
    const free = tracks.findIndex(track => track.every(other => other.to <= line.from || other.from >= line.to));
    line.track = free < 0 ? tracks.push([]) - 1 : free;
    tracks[line.track].push(line);
  }
  const gap = Math.min(10, (dots - 12) / Math.max(tracks.length, 1)), own = familyOf(chosenSize)?.name, paths = [];
  for (const {name, after, from, track} of lines) {
    const x = dots - 10 - gap * (track + 0.4), turn = Math.min(12, dots - x - 2);
    for (const each of after) {
      const path = document.createElementNS(svg.namespaceURI, "path"), to = places.get(each);
      path.setAttribute("d", `M${dots} ${from}H${x + turn}q${-turn} 0 ${-turn} ${turn}V${to - turn}q0 ${turn} ${turn} ${turn}H${dots - 6}`);
      path.setAttribute("class", own === each || own === name ? "near" : "");
      paths.push(path);
    }
  }
  svg.setAttribute("width", rail);
  svg.setAttribute("height", timeline.offsetHeight);
  svg.replaceChildren(...paths.sort((a, b) => a.classList.contains("near") - b.classList.contains("near")));
}

function startArchitectures() {
  chosenSize = DATA.families.at(-1).typical;
  byId("chosen").hidden = !WIDE.matches;
  for (const entry of entriesOf()) {
    openButton(entry).addEventListener("click", () => {
      const family = DATA.families.find(each => each.name === entry.dataset.family), panel = byId("chosen");
      if (!WIDE.matches && !panel.hidden && familyOf(chosenSize) === family) panel.hidden = true;
      else { chosenSize = family.typical; panel.hidden = false; }
      showChosen();
      changed("model");
    });
  }
  byId("chosen-size").addEventListener("change", () => { choose(byId("chosen-size").value); changed("model"); });
  byId("chosen-compare").addEventListener("click", () => {
    comparePair(byId("chosen-compare").dataset.with, chosenSize);
    goTo("compare");
  });
  byId("features").addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    filterEntries();
    changed("features");
  });
  byId("to-scale").addEventListener("change", () => { filterEntries(); changed("scale"); });
  const setModel = name => { if (!MODELS.has(name)) return false; chosenSize = name; byId("chosen").hidden = false; return true; };
  remember("model", "architectures", () => chosenSize, setModel, showChosen);
  const press = names => { for (const button of byId("features").querySelectorAll("button")) button.setAttribute("aria-pressed", String(names.includes(button.value))); };
  rememberSet("features", "architectures", features, press, filterEntries);
  remember("scale", "architectures", () => (byId("to-scale").checked ? "time" : ""), text => { byId("to-scale").checked = text === "time"; return true; }, filterEntries);
  WIDE.addEventListener("change", showChosen);
  NARROW.addEventListener("change", showChosen);
  addEventListener("resize", drawArcs);
  showChosen();
  filterEntries();
}
