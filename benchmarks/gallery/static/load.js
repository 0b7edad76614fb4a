// Unpacks the page's data, drawings and scripts, and starts the scripts. Without this script, the list of architectures
// is still complete.
"use strict";

function runScript(text) {
  const element = document.createElement("script");
  element.textContent = text;
  document.body.append(element);
  element.remove();
}

(async () => {
  const bytes = Uint8Array.from(atob(document.getElementById("packed").textContent), each => each.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  globalThis.PACKED = JSON.parse(await new Response(unpacked).text());
  runScript(PACKED.script);
  document.documentElement.dataset.started = "";
})();
