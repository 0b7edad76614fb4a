// What a model costs: sums of the terms that Python wrote. benchmarks/gallery/terms.py says what each term is.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const MODELS = new Map(DATA.models.map(model => [model.name, model]));

const seen = (run, context) => (run.window === null ? context : Math.min(context, run.window));
const whole = parts => Object.values(parts).reduce((sum, number) => sum + number, 0);
const added = (runs, of) => runs.reduce((sum, [layers, run]) => sum + layers * of(DATA.runs[run]), 0);

const sums = {
  params: runs => added(runs, run => whole(run.params)),
  active: runs => added(runs, run => run.active),
  cache: (runs, context, batch, itemsize) => batch * itemsize * added(runs, run => run.stored * seen(run, context)),
  flops: (runs, context) => added(runs, run => whole(run.fixed) + whole(run.per_seen) * seen(run, context)),
  read: (runs, batch) => added(runs, run => run.read[DATA.batches.indexOf(batch)]),
};

// The longest context whose cache takes at most `free` bytes; Infinity where every one does.
function longest(runs, free, batch, itemsize) {
  const fits = context => sums.cache(runs, context, batch, itemsize) <= free;
  let low = 0, high = 2 ** 40;
  if (fits(high)) return Infinity;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle)) low = middle; else high = middle;
  }
  return low;
}

// The most tokens a second of decoding, over all sequences: the roofline of benchmarks/analytic/roofline.py.
function ceiling(runs, context, batch, weights, cache, device) {
  const bytes = weights * sums.read(runs, batch) + sums.cache(runs, context, batch, cache);
  return batch / Math.max(batch * sums.flops(runs, context) / device.flops, bytes / device.bandwidth);
}

const released = model => [...model.outside, ...model.attention.cells[0][0], ...model.experts.cells[0][0]];
