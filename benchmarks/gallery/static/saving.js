// Charts saved as pictures and their data as CSV, and code copied to the clipboard.

function save(name, blob, kind) {
  const link = make("a", {download: `${name}.${kind}`, href: URL.createObjectURL(blob)});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const quoted = value => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));

function csv(name) {
  const {columns, rows} = DATA.tables[name];
  return [columns, ...rows].map(values => values.map(quoted).join(",")).join("\n") + "\n";
}

// A saved picture cannot take colours from the page's style sheet. It has a title, and is as wide as its legend needs.
async function picture(name, title, kind) {
  const pageStyle = getComputedStyle(document.documentElement);
  const text = JSON.stringify(chartSpec(name, 720)).replace(/var\((--\w+)\)/g, (_, colour) => pageStyle.getPropertyValue(colour).trim());
  const background = pageStyle.getPropertyValue("--paper").trim();
  const spec = {...JSON.parse(text), title, background, autosize: "pad", padding: 12};
  loadVega();
  const {view} = await vegaEmbed(make("div"), spec, {...EMBED_OPTIONS, renderer: "none"});
  if (kind === "svg") return new Blob([await view.toSVG()], {type: "image/svg+xml"});
  const canvas = await view.toCanvas(2);
  return new Promise(resolve => canvas.toBlob(resolve));
}

async function saveChart(figure, kind) {
  const name = figure.dataset.chart, table = SPECS[name].tables[0];
  save(kind === "csv" ? table : name, kind === "csv" ? new Blob([csv(table)], {type: "text/csv"}) : await picture(name, figure.querySelector("h3").textContent, kind), kind);
}

// A button with data-copy copies the text of the element of that id.
document.addEventListener("click", async event => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const text = byId(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed for a page opened as a file: copy the selected text instead
    getSelection().selectAllChildren(byId(button.dataset.copy));
    document.execCommand("copy");
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1200);
});
