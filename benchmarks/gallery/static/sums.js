// Costs of a model: sums of terms that Python computed. benchmarks/gallery/cost_terms.py defines each term.
"use strict";

const DATA = PACKED.data;
const MODELS = new Map(DATA.models.map(model => [model.name, model]));

const kept = (terms, context) => (terms.limit === null ? context : Math.min(context, terms.limit));
const stretch = (part, context) => (part.period === null ? context : (context - 1) % part.period + 1);
const visible = (part, context) =>
  Math.floor(Math.ceil(kept(part, stretch(part, context)) / part.stride) / part.every);
const entries = (terms, context) =>
  terms.entries.reduce((sum, [elements, every]) => sum + elements * Math.ceil(context / every), 0);
const grown = (part, context) => (context > part.start ? part.entry + part.flops * visible(part, context) : 0);
const total = parts => Object.values(parts).reduce((sum, number) => sum + number, 0);
const sumLayers = (layers, cost) => layers.reduce((sum, [n, index]) => sum + n * cost(DATA.terms[index]), 0);

const sums = {
  params: layers => sumLayers(layers, terms => total(terms.params)),
  activeParams: layers => sumLayers(layers, terms => terms.active_params),
  cacheBytes: (layers, context, batch, itemsize) =>
    batch * sumLayers(layers, terms => terms.state_float32_bytes
      + itemsize * (terms.cache_elements * kept(terms, context) + entries(terms, context) + terms.state_elements)),
  // Cache bytes once every window is full: the fixed bytes, and the bytes per token of context.
  cacheFixed: (layers, itemsize) => sumLayers(layers, terms => terms.state_float32_bytes
    + itemsize * (terms.state_elements + (terms.limit === null ? 0 : terms.cache_elements * terms.limit))),
  cachePerToken: (layers, itemsize) => itemsize * sumLayers(layers, terms => (terms.limit === null ? terms.cache_elements : 0)
    + terms.entries.reduce((sum, [elements, every]) => sum + elements / every, 0)),
  flops: (layers, context) =>
    sumLayers(layers, terms => total(terms.fixed_flops)
      + Object.values(terms.growing_flops).reduce((sum, part) => sum + grown(part, context), 0)),
  readParams: (layers, batch) => sumLayers(layers, terms => terms.read_params[DATA.batches.indexOf(batch)]),
};

// The longest context whose cache takes at most `free` bytes; Infinity if every context fits.
function longestContext(layers, free, batch, itemsize) {
  const fits = context => sums.cacheBytes(layers, context, batch, itemsize) <= free;
  let low = 0, high = 2 ** 40;
  if (fits(high)) return Infinity;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle)) low = middle; else high = middle;
  }
  return low;
}

// A form of stored weights. `itemsize` is null if weights have several dtypes; then a part's `stored` has the bytes.
// The name "released" stands for the model's own form.
const formOf = (model, name) => DATA.forms[name === "released" ? model.form : name];

// Bytes of the weights of a part (of onCards), and the bytes of weights that a decode step reads.
const weightBytes = (part, form) =>
  form.itemsize ? form.itemsize * sums.params(part.layers)
    : part.layers.reduce((sum, [n], i) => sum + n * part.stored[form.name][i], 0);

function readBytes(part, form, batch) {
  if (form.itemsize) return form.itemsize * sums.readParams(part.layers, batch);
  return part.layers.reduce((sum, [n, index], i) => {
    const terms = DATA.terms[index], params = total(terms.params);
    return sum + (params ? n * terms.read_params[DATA.batches.indexOf(batch)] * part.stored[form.name][i] / params : 0);
  }, 0);
}

// Upper bound on decoded tokens per second, over all sequences: the roofline of benchmarks/analytic/roofline.py.
// With several cards, `part` is one card's share, and the data that it sends (part.sent) goes over its link.
function ceiling(part, context, batch, form, cacheBytes, device) {
  const bytes = readBytes(part, form, batch) + sums.cacheBytes(part.layers, context, batch, cacheBytes);
  const computing = Math.max(batch * sums.flops(part.layers, context) / device.flops, bytes / device.bandwidth);
  return batch / (computing + (part.sent && device.link ? sentBytes(part.sent, batch, form) / device.link : 0));
}

const sentBytes = (sent, batch, form) => batch * (form.activation * sent.elements + sent.float32_bytes) + sent.step_bytes;

const released = model => [...model.outside, ...model.attention.cells[0][0], ...model.experts.cells[0][0]];
// A model's part on each of `cards` cards: its layers, their bytes by form, and the terms of the data that a card sends.
// It is null if the model cannot be divided over so many cards.
const onCards = (model, cards) =>
  (cards === 1 ? {layers: released(model), stored: model.stored, sent: null} : model.cards[cards]);
