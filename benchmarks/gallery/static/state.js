// Settings in the page's address. A link names a section and the settings that differ from a fresh page, as in
// #fit?memory=24&cards=2. A change of a setting is a step of the browser's history, so that "back" undoes it.

const SETTINGS = new Map(); // name in the address -> section, functions get, set and refresh, initial value
let lastChanged = null; // the setting of the newest step: all moves of one slider are one step

// `set` takes text and returns whether the value is known; `refresh` shows the section's settings.
function remember(name, section, get, set, refresh) {
  SETTINGS.set(name, {section, get, set, refresh, initial: get()});
}

// A select. The address has its option's value or, with `byLabel`, the option's text.
function rememberSelect(name, section, select, refresh, {byLabel = false, after = () => {}} = {}) {
  const text = option => (byLabel ? option.text : option.value);
  const get = () => (select.selectedIndex < 0 ? "" : text(select.options[select.selectedIndex]));
  const set = value => {
    const found = [...select.options].find(option => text(option) === value && !option.disabled);
    if (found) { select.value = found.value; after(); }
    return Boolean(found);
  };
  remember(name, section, get, set, refresh);
  select.addEventListener("change", () => { after(); refresh(name); changed(name); });
}

function rememberSlider(name, section, slider, input, refresh) {
  const set = text => {
    const known = slider.values.some(value => String(value) === text);
    if (known) slider.value = Number(text);
    return known;
  };
  remember(name, section, () => String(slider.value), set, refresh);
  input.addEventListener("change", () => changed(name));
}

// Checkboxes or buttons: the address has the chosen values, separated by commas. An unknown value is left out.
function rememberSet(name, section, get, set, refresh) {
  remember(name, section, () => get().join(","), text => { set(text ? text.split(",") : []); return true; }, refresh);
}

function settingsText() {
  const differing = [...SETTINGS].filter(([, each]) => each.get() !== each.initial).map(([name, each]) => [name, each.get()]);
  return new URLSearchParams(differing).toString();
}

const address = section => `#${section}${settingsText() ? `?${settingsText()}` : ""}`;

function changed(name, section = SETTINGS.get(name).section) {
  const hash = address(section);
  if (hash === location.hash) return;
  if (lastChanged === name) history.replaceState(SEEN, "", hash);
  else history.pushState(SEEN, "", hash);
  lastChanged = name;
}

const currentSection = () => decodeURIComponent(location.hash.slice(1).split("?")[0]);

// Set every setting to its value in the address, or to its initial value if the address has no known value.
function readAddress() {
  const given = new URLSearchParams(location.hash.split("?").slice(1).join("?")), refreshes = new Set();
  for (const [name, each] of SETTINGS) {
    const wanted = given.get(name) ?? each.initial;
    if (wanted === each.get()) continue;
    if (!each.set(wanted)) each.set(each.initial);
    refreshes.add(each.refresh);
  }
  for (const refresh of refreshes) refresh();
}

function goTo(id, behavior = "instant") {
  const target = document.getElementById(id);
  if (!target) return;
  const family = DATA.families.find(each => each.name === id);
  if (family && familyOf(chosenSize) !== family) {
    choose(family.typical);
    if (history.state === null) history.replaceState(null, "", address(id)); // an address that was typed lacks the choice
  }
  target.scrollIntoView({behavior, block: "start"});
  if (!target.hasAttribute("tabindex")) target.setAttribute("tabindex", "-1");
  target.focus({preventScroll: true});
}

const SEEN = {seen: true}; // marks history steps of this page; the browser itself scrolls back to them

function startState() {
  readAddress();
  if (location.hash.length > 1) goTo(currentSection());
  history.replaceState(SEEN, "");
  addEventListener("popstate", () => { lastChanged = null; readAddress(); });
  addEventListener("hashchange", () => {
    if (history.state === null && location.hash.length > 1) goTo(currentSection()); // typed, or from a link elsewhere
    history.replaceState(SEEN, "");
  });
  // A link to a place on the page keeps the settings.
  document.addEventListener("click", event => {
    const link = event.target.closest?.('a[href^="#"]');
    if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const id = decodeURIComponent(link.getAttribute("href").slice(1));
    if (!document.getElementById(id)) return;
    event.preventDefault();
    lastChanged = null;
    goTo(id);
    history.pushState(SEEN, "", address(id)); // after an architecture has been chosen, which is a setting
  });
}
