// The diagram of a swapped model, stacked from parts that were drawn ahead (benchmarks/gallery/swap_drawings.py).

// The layers of a swapped model: the frames of its kinds of layers, and the runs of layers; null for an invalid model.
// `at`: {axis: index of its choice}.
function swapStructure(model, at) {
  const drawings = PACKED.swaps.models[model.name], computing = drawings.feed_forward[at.experts][at.k];
  return computing && drawings.structures[drawings.attention[at.kv].group][computing.group][at.window][at.positions];
}

// The parts of the swapped model's drawing from the top, as [role, [text, height]].
function swapParts(model, at) {
  const drawings = PACKED.swaps.models[model.name], structure = swapStructure(model, at);
  const part = (role, index) => [role, PACKED.swaps.parts[index]];
  const branch = (role, found, choice) => (found ? [part(role, choice.parts[found[0]][found[1]])] : []);
  const frames = structure.kinds.map(i => drawings.frames[i]);
  return [
    ["strip", strip(structure.runs, frames)],
    part("pattern", structure.pattern),
    ...drawings.before.map(index => part("before", index)),
    ...frames.flatMap(frame => [
      part("top", frame.top),
      ...branch("attn", frame.attn, drawings.attention[at.kv]),
      ...branch("ffn", frame.ffn, drawings.feed_forward[at.experts][at.k]),
      ...drawings.rests[frame.rest].map(each => part(...each)),
    ]),
    ...drawings.after.map(index => part("after", index)),
  ];
}

// All layers in order, as two rows of bars: the reach of attention, and the feed-forward.
function strip(runs, frames) {
  const {left, width, height, above, below} = PACKED.swaps.strip, layers = runs.flatMap(([n, kind]) => Array(n).fill(frames[kind].look));
  const pitch = width / layers.length, gap = pitch > 5 ? 1 : pitch > 2 ? 0.6 : 0, upper = Math.round(height * 0.6);
  const bar = (css, x, y, tall) => (css === "none"
    ? `<rect class="none" x="${x + 0.5}" y="${y + 0.5}" width="${Math.max(pitch - gap - 1, 0.5)}" height="${tall - 1}"/>`
    : `<rect class="${css}" x="${x}" y="${y}" width="${pitch - gap}" height="${tall}"/>`);
  const bars = layers.map(([reach, ffn], i) => bar(reach, left + i * pitch, above, upper) + bar(ffn, left + i * pitch, above + upper, height - upper));
  return [bars.join(""), above + height + below];
}

const MOST_LINES = 4; // of a wrapped text; its line breaks depend on the space beside it

// All runs of up to MOST_LINES consecutive lines of text in a part: [elements, their text]. Lines that say where a block
// is drawn are left out.
function textRuns(group) {
  const lines = [...group.querySelectorAll("text")].filter(line => !/^drawn (above|below)$/.test(line.textContent));
  const runs = lines.flatMap((_, i) => Array.from({length: MOST_LINES}, (_, more) => lines.slice(i, i + more + 1)));
  return runs.map(run => [run, run.map(line => line.textContent).join(" ")]);
}

// Mark the lines of a part that belong to no run with a `known` text.
function markNew(group, known) {
  const runs = textRuns(group), same = new Set(runs.filter(([, text]) => known.has(text)).flatMap(([lines]) => lines));
  for (const [[line]] of runs) if (!same.has(line)) line.classList.add("differs");
}

// A drawing of parts, one below the other. Texts are marked if no part of the same role has them in the other drawing.
function stacked(parts, title, other = null) {
  const svg = shape("svg", {class: "zoo-diagram", role: "img", "aria-label": title, "font-size": "11.5"}), known = new Map();
  const drawn = markup => { const group = shape("g", {}); group.innerHTML = markup; return group; };
  for (const [role, [markup]] of other ?? [])
    known.set(role, new Set([...known.get(role) ?? [], ...textRuns(drawn(markup)).map(([, text]) => text)]));
  let y = 0;
  for (const [role, [markup, height]] of parts) {
    const group = drawn(markup);
    group.setAttribute("transform", `translate(0 ${y})`);
    if (other) markNew(group, known.get(role) ?? new Set());
    svg.append(group);
    y += height;
  }
  svg.setAttribute("viewBox", `0 0 ${PACKED.swaps.strip.page} ${y}`);
  return svg;
}

const AS_RELEASED = {kv: 0, window: 0, positions: 0, experts: 0, k: 0};

// The original beside the swapped model. In each drawing, texts that the other does not have are marked.
function drawSwap(model, at) {
  const parts = swapParts(model, AS_RELEASED), swapped = swapParts(model, at), {name} = model;
  const figure = (heading, svg) => make("figure", {}, make("p", {class: "playground-title"}, heading), svg);
  const same = swapped.length === parts.length && swapped.every(([, [text]], i) => text === parts[i][1][0]);
  if (!same) return [
    figure("As released", stacked(parts, `Diagram of ${name}`, swapped)),
    figure("Swapped", stacked(swapped, `Diagram of ${name}, swapped`, parts)),
  ];
  const choices = Object.values(at).some(choice => choice > 0);
  return [
    figure("As released", stacked(parts, `Diagram of ${name}`)),
    ...(choices ? [make("p", {class: "note"}, "These choices leave the model as it is.")] : []),
  ];
}
