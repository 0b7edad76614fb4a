// What fits on a card, and what a swapped block costs.

const CONTEXTS = Array.from({length: 25}, (_, i) => Math.round(2 ** (8 + i / 2)));
const GB = 1e9;
const MEMORIES = [8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 141, 192, 288, 384, 512, 640, 768, 1024, 1128, 1536, 2048];
const ROOM = 0.8; // of a bar's width is the card's memory

function fitRow(model, set) {
  const runs = released(model);
  const weights = sums.params(runs) * set.weights, cache = sums.cache(runs, set.context, set.batch, set.cache);
  const fits = weights + cache <= set.memory;
  const found = weights <= set.memory ? longest(runs, set.memory - weights, set.batch, set.cache) : 0;
  const beyond = model.context !== null && found > model.context;
  const speed = ceiling(runs, set.context, set.batch, set.weights, set.cache, set.device);
  return {model, weights, cache, fits, longest: found, beyond, speed};
}

// Weights, then cache; what is more than the bar has room for is cut off.
function bar(found, set) {
  const share = bytes => 100 * ROOM * bytes / set.memory;
  const weights = Math.min(share(found.weights), 100), cache = Math.min(share(found.cache), 100 - weights);
  return make("td", {}, make("span", {class: "bar", "aria-hidden": "true"},
    make("i", {class: "weights", style: `width:${weights.toFixed(2)}%`}), make("i", {class: "cache", style: `width:${cache.toFixed(2)}%`}),
    make("i", {class: "limit"})));
}

function reach(found) {
  if (found.longest === 0) return "none";
  const shown = found.longest === Infinity ? "any" : found.longest.toLocaleString("en");
  return found.beyond ? `${shown} *` : shown;
}

function startFit() {
  const update = () => {
    const set = {
      context: context.value, batch: batch.value, memory: memory.value * GB, device: DATA.devices[byId("fit-device").value],
      weights: DATA.dtypes[byId("fit-weights").value], cache: DATA.dtypes[byId("fit-cache").value],
    };
    const rows = DATA.models.map(model => fitRow(model, set));
    byId("fit-table").tBodies[0].replaceChildren(...rows.map(found => row(found.model.name, [
      bar(found, set), number(size(found.weights)), number(size(found.cache)), number(size(found.weights + found.cache)),
      make("td", {class: found.fits ? "yes" : "no"}, found.fits ? "yes" : "no"), number(reach(found)), number(count(found.speed)),
    ])));
    const fitting = rows.filter(found => found.fits).length;
    byId("fit-summary").textContent = `${fitting} of ${rows.length} fit ${memory.value} GB with ${tokens(set.context)} tokens of context${set.batch > 1 ? ` in each of ${set.batch} sequences` : ""}.`;
  };
  const context = slider("fit-context", CONTEXTS, 32768, value => `${tokens(value)} tokens`, update);
  const batch = slider("fit-batch", DATA.batches, 1, String, update);
  const memory = slider("fit-memory", MEMORIES, 80, value => `${value} GB`, update);
  const dtypes = Object.keys(DATA.dtypes).map(name => [name, name]);
  options(byId("fit-weights"), dtypes, "bfloat16");
  options(byId("fit-cache"), dtypes, "bfloat16");
  options(byId("fit-device"), Object.entries(DATA.devices).map(([key, device]) => [key, device.name]), "h100");
  for (const id of ["fit-weights", "fit-cache"]) byId(id).addEventListener("change", update);
  byId("fit-device").addEventListener("change", () => {
    memory.value = DATA.devices[byId("fit-device").value].memory / GB;
    update();
  });
  update();
}

const FIRST_SWAP = "1,024, all but every sixth layer"; // so that there is something to see

const AXES = {keys: ["attention", 0], window: ["attention", 1], experts: ["experts", 0], chosen: ["experts", 1]};
const swapSelect = axis => byId(`swap-${axis}`);
const chosen = axis => Number(swapSelect(axis).value);

// The cell of a grid, or null where the two choices do not go together.
const cell = (model, grid, i, j) => model[grid].cells[i][j];

function fillSwap(model) {
  for (const [axis, [grid, i]] of Object.entries(AXES))
    options(swapSelect(axis), model[grid].axes[i].map(([label], at) => [at, label]), 0);
  options(swapSelect("positions"), model.positions.map((choice, at) => [at, choice.label]), 0);
}

// After a change of one axis, move the other to its first choice that goes with it; disable those that do not.
function settle(model, moved) {
  for (const [rows, columns] of [["keys", "window"], ["experts", "chosen"]]) {
    const grid = AXES[rows][0];
    if (cell(model, grid, chosen(rows), chosen(columns)) === null) {
      const other = moved === columns ? rows : columns;
      const goes = at => (other === columns ? cell(model, grid, chosen(rows), at) : cell(model, grid, at, chosen(columns)));
      const free = [...swapSelect(other).options].findIndex((_, at) => goes(at) !== null);
      swapSelect(other).value = Math.max(free, 0);
    }
    for (const option of swapSelect(columns).options)
      option.disabled = cell(model, grid, chosen(rows), Number(option.value)) === null;
  }
}

function swapped(model) {
  return [...model.outside, ...cell(model, "attention", chosen("keys"), chosen("window")),
    ...cell(model, "experts", chosen("experts"), chosen("chosen"))];
}

// Of each axis what is chosen: label, Python, and what it drops.
const picks = model => Object.entries(AXES).map(([axis, [grid, i]]) => model[grid].axes[i][chosen(axis)]);

// The Python that does it: only the names that it needs are imported.
function code(model) {
  const axes = picks(model).map(([, lines]) => lines);
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
  const free = model.positions[chosen("positions")].without, dropped = picks(model).map(([, , lost]) => lost).filter(Boolean);
  const told = free
    ? `${free} of ${model.layers} layers ${free === 1 ? "has" : "have"} no position encoding, which costs nothing and saves nothing.`
    : `All ${model.layers} layers have a position encoding.`;
  return dropped.length ? `${told} Dropped on the way: ${dropped.join(", ")}.` : told;
}

function startSwap() {
  const model = () => MODELS.get(byId("swap-model").value);
  const update = () => {
    const before = released(model()), after = swapped(model()), at = context.value;
    const costs = [
      ["parameters", count, sums.params(before), sums.params(after)],
      ["active parameters", count, sums.active(before), sums.active(after)],
      [`KV cache at ${tokens(at)}, bfloat16`, size, sums.cache(before, at, 1, 2), sums.cache(after, at, 1, 2)],
      [`FLOPs of a token at ${tokens(at)}`, flops, sums.flops(before, at), sums.flops(after, at)],
      [`ceiling on one H100, tokens/s`, count, ...[before, after].map(runs => ceiling(runs, at, 1, 2, 2, DATA.devices.h100))],
    ];
    byId("swap-table").tBodies[0].replaceChildren(...costs.map(([name, show, a, b]) =>
      row(name, [number(show(a)), number(show(b)), number(change(a, b))])));
    byId("swap-note").textContent = note(model());
    byId("swap-code").textContent = code(model());
  };
  const llama = DATA.families.find(family => family.name === "llama3") || DATA.families[0];
  modelOptions(byId("swap-model"), llama.typical);
  fillSwap(model());
  const context = slider("swap-context", CONTEXTS, 32768, value => `${tokens(value)} tokens`, update);
  byId("swap-model").addEventListener("change", () => { fillSwap(model()); settle(model()); update(); });
  for (const axis of [...Object.keys(AXES), "positions"])
    swapSelect(axis).addEventListener("change", () => { settle(model(), axis); update(); });
  byId("swap-reset").addEventListener("click", () => { fillSwap(model()); settle(model()); update(); });
  const plan = [...swapSelect("window").options].find(option => option.text === FIRST_SWAP);
  if (plan) swapSelect("window").value = plan.value;
  settle(model(), "window");
  update();
}
