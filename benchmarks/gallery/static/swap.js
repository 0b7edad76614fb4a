// The costs of a swapped block, and the code that makes the same swap.

const FIRST_SWAP = "1,024, all but every sixth layer"; // so that the table shows a difference

const AXES = {kv: ["attention", 0], window: ["attention", 1], experts: ["experts", 0], k: ["experts", 1]}; // [grid, axis]
const swapSelect = axis => byId(`swap-${axis}`);
const chosen = axis => Number(swapSelect(axis).value);
const chosenAxes = () => Object.fromEntries([...Object.keys(AXES), "positions"].map(axis => [axis, chosen(axis)]));

// The cell of a grid, or null if the two choices cannot be combined.
const cell = (model, grid, i, j) => model[grid].cells[i][j];

function fillSwap(model) {
  for (const [axis, [grid, i]] of Object.entries(AXES))
    options(swapSelect(axis), model[grid].axes[i].map((choice, at) => [at, choice.label]), 0);
  options(swapSelect("positions"), model.positions.map((choice, at) => [at, choice.label]), 0);
  reconcile(model);
}

// After a change of one axis, move the other to its first choice that can be combined with it, and disable the rest.
function reconcile(model, changedAxis) {
  for (const [rows, columns] of [["kv", "window"], ["experts", "k"]]) {
    const grid = AXES[rows][0];
    if (cell(model, grid, chosen(rows), chosen(columns)) === null) {
      const other = changedAxis === columns ? rows : columns;
      const combines = at => (other === columns ? cell(model, grid, chosen(rows), at) : cell(model, grid, at, chosen(columns)));
      const first = [...swapSelect(other).options].findIndex((_, at) => combines(at) !== null);
      swapSelect(other).value = Math.max(first, 0);
    }
    for (const option of swapSelect(columns).options)
      option.disabled = cell(model, grid, chosen(rows), Number(option.value)) === null;
  }
}

const swapped = model => [...model.outside, ...cell(model, "attention", chosen("kv"), chosen("window")),
  ...cell(model, "experts", chosen("experts"), chosen("k"))];

// The current choices. Each has a label, its swaps, and the features that they drop.
const currentChoices = model =>
  [...Object.entries(AXES).map(([axis, [grid, i]]) => model[grid].axes[i][chosen(axis)]), model.positions[chosen("positions")]];
const currentSwaps = model => currentChoices(model).flatMap(choice => choice.swaps);

// Python code that makes the swapped spec.
function swapCode(model) {
  const swaps = currentSwaps(model).map(swap => `    ${JSON.stringify(swap)},`);
  return [
    model.code.includes("json") ? "import json, zoo" : "import zoo",
    ...(swaps.length ? ["from zoo.swaps.grammar import apply_swaps"] : []), "",
    model.code, ...(swaps.length ? ["spec, dropped = apply_swaps(spec, [", ...swaps, "])"] : []),
    "print(spec.params(), spec.kv_growth())",
  ].join("\n");
}

// The command that makes the same swap, or null if nothing is swapped.
function swapCommand(model) {
  const swaps = currentSwaps(model);
  return swaps.length ? `python -m benchmarks kv ${model.name} ${swaps.map(swap => `--swap '${swap}'`).join(" ")}` : null;
}

function swapNote(model, context) {
  const {note} = model.positions[chosen("positions")], dropped = currentChoices(model).map(choice => choice.dropped).filter(Boolean);
  return [
    note, ...(chosen("positions") ? ["Positions do not change the costs."] : []),
    ...(dropped.length ? [`Dropped features: ${[...new Set(dropped)].join(", ")}.`] : []),
    ...(context > model.context ? [`${formatTokens(context)} tokens are beyond its context of ${formatTokens(model.context)}.`] : []),
  ].join(" ");
}

// A sentence on the changes.
function swapSummary(model) {
  const words = {
    kv: label => (label.startsWith("latent") ? `a ${label}` : label),
    window: label => (label === "none" ? "no window" : `a window of ${label}`),
    experts: label => (label === "dense" ? "a dense feed-forward" : `${label} experts`),
    k: label => `${label} expert${label === "1" ? "" : "s"} per token`,
    positions: label => label,
  };
  const changes = Object.entries(words).filter(([axis]) => swapSelect(axis).selectedIndex > 0)
    .map(([axis, say]) => say(swapSelect(axis).selectedOptions[0].text));
  return [make("strong", {}, model.title), changes.length ? ` with ${changes.join("; ")}` : " as released"];
}

const SWAP_HEADS = ["as released", "swapped", "change"];

function swapRows(before, after, context) {
  const bf16 = DATA.forms.bfloat16, h100 = DATA.devices.h100;
  const speed = layers => {
    const part = {layers, sent: null}, fits = weightBytes(part, bf16) + sums.cacheBytes(layers, context, 1, 2) <= h100.memory;
    return fits ? ceiling(part, context, 1, bf16, 2, h100) : null;
  };
  return [
    ["parameters", formatCount, sums.params],
    ["active parameters", formatCount, sums.activeParams],
    ["KV cache, fixed", formatBytes, layers => sums.cacheFixed(layers, 2)],
    ["KV cache per token", formatBytes, layers => sums.cachePerToken(layers, 2)],
    [`KV cache at ${formatTokens(context)}`, formatBytes, layers => sums.cacheBytes(layers, context, 1, 2)],
    [`FLOPs per token at ${formatTokens(context)}`, formatFlops, layers => sums.flops(layers, context)],
    ["ceiling on one H100, tokens/s", formatCount, speed],
  ].map(([name, format, cost]) => {
    const values = [before, after].map(cost), shown = values.map(value => (value === null ? "does not fit" : format(value)));
    const change = values.includes(null) ? "" : formatChange(...values);
    return row(name, [...shown, change].map(numberCell), SWAP_HEADS);
  });
}

function startSwap() {
  const model = () => MODELS.get(byId("swap-model").value);
  const update = () => {
    byId("swap-table").tBodies[0].replaceChildren(...swapRows(released(model()), swapped(model()), context.value));
    byId("swap-note").textContent = swapNote(model(), context.value);
    byId("swap-summary").replaceChildren(...swapSummary(model()));
    byId("swap-drawings").replaceChildren(...drawSwap(model(), chosenAxes()));
    byId("swap-code").textContent = swapCode(model());
    const command = swapCommand(model());
    byId("swap-command").textContent = command ?? "";
    byId("swap-command-place").hidden = command === null;
  };
  const llama = DATA.families.find(family => family.name === "llama3") || DATA.families[0];
  modelOptions(byId("swap-model"), llama.typical);
  fillSwap(model());
  const context = slider("swap-context", CONTEXTS, 32768, value => `${formatTokens(value)} tokens`, update);
  const first = [...swapSelect("window").options].find(option => option.text === FIRST_SWAP && !option.disabled);
  if (first) swapSelect("window").value = first.value;
  rememberSelect("swap.model", "swap", byId("swap-model"), update, {after: () => fillSwap(model())});
  for (const axis of [...Object.keys(AXES), "positions"]) // an address sets them in this order, unless they are disabled
    rememberSelect(`swap.${axis}`, "swap", swapSelect(axis), update, {byLabel: true, after: () => reconcile(model(), axis)});
  rememberSlider("swap.context", "swap", context, byId("swap-context"), update);
  byId("swap-reset").addEventListener("click", () => {
    fillSwap(model());
    update();
    changed("swap.reset", "swap");
  });
  update();
}
