// What fits on a card, and the costs of a swapped block.

const CONTEXTS = Array.from({length: 25}, (_, i) => Math.round(2 ** (8 + i / 2)));
const GB = 1e9;
const MEMORIES = [8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 141, 192, 288, 384, 512, 640, 768, 1024, 1128, 1536, 2048];
const MEMORY_SHARE = 0.8; // of a bar's width, for the card's memory

function fitRow(model, setup) {
  const part = onCards(model, setup.cards), {context, batch, memory} = setup;
  if (part === null) return {model, fits: false};
  const {layers, sent} = part;
  const weights = sums.params(layers) * setup.weights, cache = sums.cacheBytes(layers, context, batch, setup.cache);
  const fits = weights + cache <= memory;
  const longest = weights <= memory ? longestContext(layers, memory - weights, batch, setup.cache) : 0;
  const beyond = model.context !== null && longest > model.context;
  const speed = ceiling(layers, context, batch, setup.weights, setup.cache, setup.device, sent);
  return {model, weights, cache, fits, longest, beyond, speed};
}

// Weights, then cache, cut off at the end of the bar.
function bar(fit, setup) {
  const share = bytes => 100 * MEMORY_SHARE * bytes / setup.memory;
  const weights = Math.min(share(fit.weights), 100), cache = Math.min(share(fit.cache), 100 - weights);
  return make("td", {}, make("span", {class: "bar", "aria-hidden": "true"},
    make("i", {class: "weights", style: `width:${weights.toFixed(2)}%`}), make("i", {class: "cache", style: `width:${cache.toFixed(2)}%`}),
    make("i", {class: "limit"})));
}

function longestShown(fit) {
  if (fit.longest === 0) return "none";
  const shown = fit.longest === Infinity ? "any" : fit.longest.toLocaleString("en");
  return fit.beyond ? `${shown} *` : shown;
}

function fitCells(fit, setup) {
  if (fit.weights === undefined)
    return [make("td", {class: "no", colspan: "7"}, `${setup.cards} cards cannot divide it`)];
  return [
    bar(fit, setup), numberCell(formatBytes(fit.weights)), numberCell(formatBytes(fit.cache)), numberCell(formatBytes(fit.weights + fit.cache)),
    make("td", {class: fit.fits ? "yes" : "no"}, fit.fits ? "yes" : "no"), numberCell(longestShown(fit)), numberCell(formatCount(fit.speed)),
  ];
}

function startFit() {
  const update = () => {
    const setup = {
      cards: Number(byId("fit-cards").value),
      context: context.value, batch: batch.value, memory: memory.value * GB, device: DATA.devices[byId("fit-device").value],
      weights: DATA.dtypes[byId("fit-weights").value], cache: DATA.dtypes[byId("fit-cache").value],
    };
    const rows = DATA.models.map(model => fitRow(model, setup));
    byId("fit-table").tBodies[0].replaceChildren(...rows.map(fit => row(fit.model.name, fitCells(fit, setup))));
    const fitting = rows.filter(fit => fit.fits).length;
    byId("fit-summary").textContent = `${fitting} of ${rows.length} fit ${setup.cards > 1 ? `${setup.cards} x ` : ""}${memory.value} GB with ${formatTokens(setup.context)} tokens of context${setup.batch > 1 ? ` in each of ${setup.batch} sequences` : ""}.`;
  };
  const context = slider("fit-context", CONTEXTS, 32768, value => `${formatTokens(value)} tokens`, update);
  const batch = slider("fit-batch", DATA.batches, 1, String, update);
  const memory = slider("fit-memory", MEMORIES, 80, value => `${value} GB`, update);
  const dtypes = Object.keys(DATA.dtypes).map(name => [name, name]);
  options(byId("fit-weights"), dtypes, "bfloat16");
  options(byId("fit-cache"), dtypes, "bfloat16");
  options(byId("fit-cards"), DATA.cards.map(cards => [cards, cards]), 1);
  options(byId("fit-device"), Object.entries(DATA.devices).map(([key, device]) => [key, device.name]), "h100");
  for (const id of ["fit-weights", "fit-cache", "fit-cards"]) byId(id).addEventListener("change", update);
  byId("fit-device").addEventListener("change", () => {
    memory.value = DATA.devices[byId("fit-device").value].memory / GB;
    update();
  });
  update();
}

const FIRST_SWAP = "1,024, all but every sixth layer"; // so that the table shows a difference

const AXES = {kv: ["attention", 0], window: ["attention", 1], experts: ["experts", 0], k: ["experts", 1]}; // [grid, axis]
const swapSelect = axis => byId(`swap-${axis}`);
const chosen = axis => Number(swapSelect(axis).value);

// The cell of a grid, or null if the two choices cannot be combined.
const cell = (model, grid, i, j) => model[grid].cells[i][j];

function fillSwap(model) {
  for (const [axis, [grid, i]] of Object.entries(AXES))
    options(swapSelect(axis), model[grid].axes[i].map(([label], at) => [at, label]), 0);
  options(swapSelect("positions"), model.positions.map((choice, at) => [at, choice.label]), 0);
}

// After a change of one axis, move the other to its first choice that can be combined with it, and disable the rest.
function reconcile(model, changed) {
  for (const [rows, columns] of [["kv", "window"], ["experts", "k"]]) {
    const grid = AXES[rows][0];
    if (cell(model, grid, chosen(rows), chosen(columns)) === null) {
      const other = changed === columns ? rows : columns;
      const combines = at => (other === columns ? cell(model, grid, chosen(rows), at) : cell(model, grid, at, chosen(columns)));
      const first = [...swapSelect(other).options].findIndex((_, at) => combines(at) !== null);
      swapSelect(other).value = Math.max(first, 0);
    }
    for (const option of swapSelect(columns).options)
      option.disabled = cell(model, grid, chosen(rows), Number(option.value)) === null;
  }
}

function swapped(model) {
  return [...model.outside, ...cell(model, "attention", chosen("kv"), chosen("window")),
    ...cell(model, "experts", chosen("experts"), chosen("k"))];
}

// The choice of each axis: its label, its Python code, and the features it drops.
const currentChoices = model => Object.entries(AXES).map(([axis, [grid, i]]) => model[grid].axes[i][chosen(axis)]);

// Python code that makes the swapped spec, with the imports that it needs.
function code(model) {
  const axes = currentChoices(model).map(([, lines]) => lines);
  const lines = [...axes, model.positions[chosen("positions")].code].filter(Boolean).join("\n");
  const named = ["GQA", "NoPE", "RoPE", "swap_layers"].filter(name => new RegExp(`\\b${name}\\b`).test(lines.replace(/"[^"]*"/g, "")));
  return [
    ...(lines.includes("replace(") ? ["from dataclasses import replace"] : []),
    model.code.includes("json") ? "import json, zoo" : "import zoo",
    ...(named.length ? [`from zoo import ${named.join(", ")}`] : []),
    ...(lines.includes("apply_swap") ? ["from zoo.swaps.grammar import apply_swap"] : []), "",
    model.code, ...(lines ? [lines] : []), "print(spec.params(), spec.kv_growth())",
  ].join("\n");
}

function note(model) {
  const without = model.positions[chosen("positions")].without, dropped = currentChoices(model).map(([, , features]) => features).filter(Boolean);
  const text = without
    ? `${without} of ${model.layers} layers ${without === 1 ? "has" : "have"} no position encoding, which does not change the costs.`
    : `All ${model.layers} layers have a position encoding.`;
  return dropped.length ? `${text} Dropped features: ${dropped.join(", ")}.` : text;
}

function startSwap() {
  const model = () => MODELS.get(byId("swap-model").value);
  const update = () => {
    const before = released(model()), after = swapped(model()), at = context.value;
    const costs = [
      ["parameters", formatCount, sums.params(before), sums.params(after)],
      ["active parameters", formatCount, sums.activeParams(before), sums.activeParams(after)],
      [`KV cache at ${formatTokens(at)}, bfloat16`, formatBytes, sums.cacheBytes(before, at, 1, 2), sums.cacheBytes(after, at, 1, 2)],
      [`FLOPs per token at ${formatTokens(at)}`, formatFlops, sums.flops(before, at), sums.flops(after, at)],
      [`ceiling on one H100, tokens/s`, formatCount, ...[before, after].map(layers => ceiling(layers, at, 1, 2, 2, DATA.devices.h100))],
    ];
    byId("swap-table").tBodies[0].replaceChildren(...costs.map(([name, format, a, b]) =>
      row(name, [numberCell(format(a)), numberCell(format(b)), numberCell(formatChange(a, b))])));
    byId("swap-note").textContent = note(model());
    byId("swap-code").textContent = code(model());
  };
  const llama = DATA.families.find(family => family.name === "llama3") || DATA.families[0];
  modelOptions(byId("swap-model"), llama.typical);
  fillSwap(model());
  const context = slider("swap-context", CONTEXTS, 32768, value => `${formatTokens(value)} tokens`, update);
  byId("swap-model").addEventListener("change", () => { fillSwap(model()); reconcile(model()); update(); });
  for (const axis of [...Object.keys(AXES), "positions"])
    swapSelect(axis).addEventListener("change", () => { reconcile(model(), axis); update(); });
  byId("swap-reset").addEventListener("click", () => { fillSwap(model()); reconcile(model()); update(); });
  const first = [...swapSelect("window").options].find(option => option.text === FIRST_SWAP);
  if (first) swapSelect("window").value = first.value;
  reconcile(model(), "window");
  update();
}
