// Interactive drawings beside the text on blocks: a move of a slider redraws the drawing and updates its numbers.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// A figure with sliders (name, values, first value), put after the heading of this id. `draw` gets their values and
// returns [width, height, shapes, caption].
function playground(heading, title, sliders, draw) {
  const place = byId(heading);
  if (!place) return;
  const svg = shape("svg", {role: "img"}), caption = make("figcaption", {role: "status"});
  const figure = make("figure", {class: "playground"}), controls = make("div", {class: "controls"});
  const inputs = sliders.map(([name, values, first], i) => {
    const id = `${heading}-${i}`, input = make("input", {type: "range", id, step: "1"}), shown = make("output", {id: `${id}-shown`, for: id});
    controls.append(make("label", {for: id}, `${name} `, shown, input));
    return [id, values, first];
  });
  figure.append(make("p", {class: "playground-title"}, title), controls, svg, caption);
  let after = place.nextElementSibling; // after the drawings at the start of the section
  while (after?.classList.contains("drawings")) after = after.nextElementSibling;
  place.parentElement.insertBefore(figure, after);
  const update = () => {
    const [width, height, shapes, text] = draw(...chosen.map(slider => slider.value));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.maxWidth = `${width}px`;
    svg.setAttribute("aria-label", text);
    svg.replaceChildren(...shapes);
    caption.textContent = text;
  };
  const chosen = inputs.map(([id, values, first]) => slider(id, values, first, String, () => update()));
  update();
}

const cellOf = (x, y, size, look) => shape("rect", {x, y, width: size, height: size, rx: 2, class: look});

// Query heads above the KV heads that they share.
function drawHeads(kvHeads) {
  const heads = 8, pitch = 40, shapes = [], group = heads / kvHeads;
  for (let head = 0; head < heads; head++) {
    const own = Math.floor(head / group), x = head * pitch + 6, to = (own + 0.5) * group * pitch - 6;
    shapes.push(shape("path", {d: `M${x + 14} 42C${x + 14} 62 ${to} 58 ${to} 78`, class: "join"}));
    shapes.push(shape("rect", {x, y: 14, width: 28, height: 28, rx: 4, class: "query"}), shape("text", {x: x + 14, y: 32, class: "on"}, `q${head + 1}`));
  }
  for (let own = 0; own < kvHeads; own++) {
    const x = (own + 0.5) * group * pitch - 20;
    shapes.push(shape("rect", {x, y: 78, width: 28, height: 28, rx: 4, class: "kept"}), shape("text", {x: x + 14, y: 96, class: "on"}, "kv"));
  }
  const kind = kvHeads === heads ? "MHA" : kvHeads === 1 ? "MQA" : "GQA", bytes = 2 * 2 * kvHeads * 128;
  return [heads * pitch, 116, shapes, `${kind}: ${group} query heads read each of ${kvHeads} KV heads. At 128 elements a head in bfloat16 a layer keeps ${formatBytes(bytes)} for each token.`];
}

// The keys that each query sees, and the number of tokens in the cache.
function drawWindow(window, every) {
  const tokens = 16, size = 13, shapes = [], gap = 40;
  let pairs = 0;
  [window, tokens].forEach((reach, kind) => {
    for (let query = 0; query < tokens; query++) {
      for (let key = 0; key < tokens; key++) {
        const sees = key <= query && query - key < reach;
        if (kind === 0) pairs += sees;
        shapes.push(cellOf(kind * (tokens * size + gap) + key * size, 20 + query * size, size - 1.5, sees ? (kind ? "seen" : "seen-window") : "unseen"));
      }
    }
    shapes.push(shape("text", {x: kind * (tokens * size + gap), y: 12, class: "left"}, kind ? `1 of ${every} layers: all tokens` : `${every - 1} of ${every}: last ${window}`));
  });
  const kept = ((every - 1) * window + tokens) / every;
  return [2 * tokens * size + gap, 20 + tokens * size, shapes, `A query sees at most ${window} keys: ${pairs} pairs instead of ${tokens * (tokens + 1) / 2}. After ${tokens} tokens a layer keeps ${threeDigits(kept)} of them on average, instead of ${tokens}.`];
}

// Pairs of elements, each rotated by the position at its own speed. The score depends on the distance alone.
function drawRotation(query, key) {
  const pairs = 6, radius = 26, base = 100, shapes = [];
  let score = 0;
  for (let pair = 0; pair < pairs; pair++) {
    const speed = base ** (-pair / pairs), x = 34 + pair * 66, y = 44;
    shapes.push(shape("circle", {cx: x, cy: y, r: radius, class: "wheel"}));
    for (const [position, look] of [[key, "kept"], [query, "query"]]) {
      const angle = position * speed;
      shapes.push(shape("path", {d: `M${x} ${y}L${(x + radius * Math.cos(angle)).toFixed(1)} ${(y - radius * Math.sin(angle)).toFixed(1)}`, class: `hand ${look}`}));
    }
    score += Math.cos((query - key) * speed);
    shapes.push(shape("text", {x, y: 88, class: "middle"}, `${threeDigits(2 * Math.PI / speed)} tokens`));
  }
  return [pairs * 66, 96, shapes, `Each pair turns once in the tokens below it. The score of equal vectors is ${(score / pairs).toFixed(2)} of its most at a distance of ${query - key}: move both, and it stays.`];
}

// A router's scores for one token: the k highest are chosen, and their softmax weights the experts.
function drawRouting(k, token) {
  const experts = 16, pitch = 24, height = 90, shapes = [];
  const logits = Array.from({length: experts}, (_, i) => 2.2 * Math.sin(12.9898 * (i + 1) * token + 4.1414 * i)); // arbitrary values
  const chosen = logits.map((logit, i) => [logit, i]).sort((a, b) => b[0] - a[0]).slice(0, k).map(([, i]) => i);
  const sum = chosen.reduce((all, i) => all + Math.exp(logits[i]), 0), share = i => (chosen.includes(i) ? Math.exp(logits[i]) / sum : 0);
  logits.forEach((logit, i) => {
    const y = 14 + (2.4 - logit) / 4.8 * (height - 20);
    shapes.push(shape("rect", {x: i * pitch + 3, y, width: pitch - 6, height: height - y + 8, rx: 2, class: chosen.includes(i) ? "chosen" : "rest"}));
    if (chosen.includes(i)) shapes.push(shape("text", {x: i * pitch + pitch / 2, y: y - 3, class: "middle"}, share(i).toFixed(2)));
    shapes.push(shape("text", {x: i * pitch + pitch / 2, y: height + 20, class: "middle"}, String(i + 1)));
  });
  return [experts * pitch, height + 26, shapes, `Token ${token}: experts ${listed([...chosen].sort((a, b) => a - b).map(i => i + 1))} compute it, with the weights above their scores, which add up to 1; ${k} of ${experts} experts' parameters are active.`];
}

function startPlaygrounds() {
  playground("block-shared-keys-gqa-and-mqa", "Heads that share keys", [["KV heads", [1, 2, 4, 8], 2]], drawHeads);
  playground("block-a-window-or-a-chunk", "A window in most layers", [["window", [1, 2, 3, 4, 6, 8, 12, 16], 4], ["a full layer in", [2, 3, 4, 6], 6]], drawWindow);
  playground("block-position-rope-and-nope", "Rotation by position", [["query at", Array.from({length: 64}, (_, i) => i), 12], ["key at", Array.from({length: 64}, (_, i) => i), 8]], drawRotation);
  playground("block-mixture-of-experts", "Top-k routing", [["experts per token", [1, 2, 4, 6, 8], 2], ["token", [1, 2, 3, 4, 5, 6, 7, 8], 1]], drawRouting);
}
