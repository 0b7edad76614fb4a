// Models that fit on a card: each model's weights and cache beside the card's memory, all on one scale.

const CONTEXTS = Array.from({length: 25}, (_, i) => Math.round(2 ** (8 + i / 2)));
const GB = 1e9;
const MEMORIES = [8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 141, 192, 288, 384, 512, 640, 768, 1024, 1128, 1536, 2048];
const SCALE = {from: 1e8, to: 4e12, marks: [1e9, 1e10, 1e11, 1e12]}; // bytes; the bars are logarithmic
const CUSTOM = "custom";

function fitRow(model, setup) {
  const part = onCards(model, setup.cards), form = formOf(model, setup.weights), {context, batch, memory} = setup;
  const beyond = model.context !== null && context > model.context;
  if (part === null) return {model, fits: false, beyond};
  const weights = weightBytes(part, form), cache = sums.cacheBytes(part.layers, context, batch, setup.cache);
  const fits = weights + cache <= memory;
  const longest = weights <= memory ? longestContext(part.layers, memory - weights, batch, setup.cache) : 0;
  const speed = fits && setup.device ? ceiling(part, context, batch, form, setup.cache, setup.device) : null;
  return {model, form, weights, cache, fits, longest, speed, beyond};
}

// The place of a number of bytes on the scale, from 0 to 100.
const onScale = bytes =>
  100 * Math.min(Math.max(Math.log(bytes / SCALE.from) / Math.log(SCALE.to / SCALE.from), 0), 1);

// A bar of the weights, then of the cache, with a line at the card's memory.
function bar(fit, setup) {
  const weights = onScale(fit.weights), both = onScale(fit.weights + fit.cache);
  return make("td", {class: "bar-cell"}, make("span", {class: "bar", "aria-hidden": "true"},
    ...SCALE.marks.map(mark => make("i", {class: "mark", style: `left:${onScale(mark).toFixed(2)}%`})),
    make("i", {class: "weights", style: `width:${weights.toFixed(2)}%`}),
    make("i", {class: "cache", style: `left:${weights.toFixed(2)}%;width:${Math.max(both - weights, 0.4).toFixed(2)}%`}),
    make("i", {class: "limit", style: `left:${onScale(setup.memory).toFixed(2)}%`})));
}

// The longest context that fits, as text; at most the model's max context.
function longestShown({model, longest}) {
  if (longest === 0) return "none";
  if (model.context !== null && longest >= model.context) return `all of its ${formatTokens(model.context)}`;
  return longest > 2 ** 30 ? "any" : formatTokens(longest);
}

const FIT_HEADS = ["", "weights", "cache", "total", "fits", "longest context", "ceiling, tokens/s"];

function fitCells(fit, setup) {
  if (fit.weights === undefined)
    return [make("td", {class: "no", colspan: "7"}, `${setup.cards} cards cannot divide it`)];
  const own = setup.weights === "released" ? [make("small", {}, fit.form.label)] : [];
  const verdict = fit.fits ? "yes" : fit.weights > setup.memory ? "no" : "no: the cache";
  const beyond = fit.beyond ? [make("small", {}, `beyond its ${formatTokens(fit.model.context)} context`)] : [];
  return [
    bar(fit, setup), make("td", {class: "number"}, formatDecimalBytes(fit.weights), ...own),
    make("td", {class: "number"}, formatDecimalBytes(fit.cache), ...beyond), numberCell(formatDecimalBytes(fit.weights + fit.cache)),
    make("td", {class: fit.fits ? "yes" : "no"}, verdict), numberCell(longestShown(fit)),
    numberCell(fit.speed === null ? "–" : formatCount(fit.speed)),
  ];
}

// The command that prints the same figures, for one size of each architecture.
function fitCommand({context, batch, gigabytes, weights, cards}) {
  const cache = byId("fit-cache").value, options = [`--context ${context}`, `--memory ${gigabytes}GB`, `--dtype ${weights}`];
  if (cache !== "bfloat16") options.push(`--cache-dtype ${cache}`);
  if (batch > 1) options.push(`--batch ${batch}`);
  if (cards > 1) options.push(`--tp ${cards}`, `--ep ${cards}`); // leaves out models whose experts do not divide
  return `python -m benchmarks kv ${options.join(" ")}`;
}

const devicesOf = gigabytes => Object.entries(DATA.devices).filter(([, device]) => device.memory === gigabytes * GB);

// Select the card with this memory. If no known card has it, the card is "custom" and has no rates.
function nameCard(gigabytes) {
  const select = byId("fit-device"), known = devicesOf(gigabytes);
  const custom = [...select.options].find(option => option.value === CUSTOM);
  custom.textContent = `custom, ${gigabytes} GB`;
  if (!known.some(([key]) => key === select.value)) select.value = known.length ? known[0][0] : CUSTOM;
}

// If an address has a card and a different memory, the memory decides.
function rememberCard(memory, update) {
  const select = byId("fit-device"), first = select.value;
  const take = () => {
    if (select.value !== CUSTOM) memory.value = DATA.devices[select.value].memory / GB;
    nameCard(memory.value);
  };
  const set = key => {
    if (key !== CUSTOM && !(key in DATA.devices)) return false;
    const fromMemory = key === CUSTOM || (key === first && DATA.devices[key].memory !== memory.value * GB);
    if (!fromMemory) { select.value = key; take(); } else nameCard(memory.value);
    return true;
  };
  remember("card", "fit", () => select.value, set, update);
  select.addEventListener("change", () => { take(); update(); changed("card"); });
}

function startFit() {
  const update = () => {
    const key = byId("fit-device").value, cards = Number(byId("fit-cards").value), weights = byId("fit-weights").value;
    const setup = {
      cards, weights, context: context.value, batch: batch.value, memory: memory.value * GB,
      device: key === CUSTOM ? null : DATA.devices[key], cache: DATA.dtypes[byId("fit-cache").value],
    };
    const rows = DATA.models.map(model => fitRow(model, setup));
    byId("fit-table").tBodies[0].replaceChildren(...rows.map(fit => row(fit.model.name, fitCells(fit, setup), FIT_HEADS)));
    const able = rows.filter(fit => !fit.beyond), fitting = able.filter(fit => fit.fits).length, of = cards > 1 ? `${cards} cards of ${memory.value} GB` : `${memory.value} GB`;
    const each = setup.batch > 1 ? ` in each of ${setup.batch} sequences` : "";
    const stored = `weights ${weights === "released" ? "as released" : `in ${DATA.forms[weights].label}`}, cache in ${byId("fit-cache").value}`;
    byId("fit-summary").replaceChildren(make("strong", {}, `${fitting} of ${able.length}`), ` models with a context of ${formatTokens(setup.context)} tokens or more fit in ${of} with that many${each}; ${stored}.`);
    const names = devicesOf(memory.value).map(([, device]) => device.name);
    byId("fit-cards-known").textContent = names.length ? `${memory.value} GB: ${listed(names)}.`
      : `No card with ${memory.value} GB is known here, so there are no ceilings.`;
    byId("fit-code").textContent = fitCommand({...setup, gigabytes: memory.value});
  };
  const moved = () => { nameCard(memory.value); update(); };
  const context = slider("fit-context", CONTEXTS, 32768, value => `${formatTokens(value)} tokens`, update);
  const batch = slider("fit-batch", DATA.batches, 1, String, update);
  const memory = slider("fit-memory", MEMORIES, 80, value => `${value} GB`, moved);
  const forms = Object.values(DATA.forms).filter(form => form.choice).map(form => [form.name, form.label]);
  options(byId("fit-weights"), [["released", "as released"], ...forms], "released");
  options(byId("fit-cache"), Object.keys(DATA.dtypes).map(name => [name, name]), "bfloat16");
  options(byId("fit-cards"), DATA.cards.map(cards => [cards, cards]), 1);
  options(byId("fit-device"), [...Object.entries(DATA.devices).map(([key, device]) => [key, `${device.name}, ${device.memory / GB} GB`]), [CUSTOM, CUSTOM]], "h100");
  nameCard(memory.value);
  rememberSlider("context", "fit", context, byId("fit-context"), update);
  rememberSlider("sequences", "fit", batch, byId("fit-batch"), update);
  rememberSlider("memory", "fit", memory, byId("fit-memory"), moved);
  rememberCard(memory, update);
  for (const [name, id] of [["cards", "fit-cards"], ["weights", "fit-weights"], ["cache", "fit-cache"]])
    rememberSelect(name, "fit", byId(id), update);
  byId("fit-scale").replaceChildren(...SCALE.marks.map(mark =>
    make("span", {style: `left:${onScale(mark).toFixed(2)}%`}, formatDecimalBytes(mark))));
  update();
}
