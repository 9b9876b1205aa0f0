"use strict";
// The lists of groups: cards, sizes, legend, options. The page comes with those of its own level; others are made here.

const find = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

/** Give everything that belongs to a group its colour. */
function paintGroups(root) {
  for (const each of root.querySelectorAll("[data-group]")) {
    const group = Number(each.dataset.group);
    const colour = pictures.groups[group]?.colour ?? group;
    each.style.setProperty("--group", `light-dark(${groupColour(colour, false)}, ${groupColour(colour, true)})`);
  }
}

/** "animal › dog ›", for the top of a card; empty at the top of the tree. */
function crumbs(names) {
  return element("p", { class: "crumbs" }, ...(names.length ? [`${names.join(" › ")} ›`] : []));
}

function strip(label, numbers, kind = "") {
  return element("div", { class: `strip ${kind}`, role: "group", "aria-label": label }, ...numbers.map((i) => pictureButton(i)));
}

/** What a card says of pictures that may be in the wrong group. */
function doubts({ name, borderline, odd }) {
  const part = (title, note, label, numbers) =>
    element("div", {}, element("h4", {}, `${title} `, element("span", {}, note)), strip(`${label} ${name}`, numbers));
  const parts = [part("Borderline", "nearly in another group", "Borderline pictures of", borderline)];
  if (odd.length) parts.push(part("Odd ones out", "least like the rest", "Odd ones out in", odd));
  return element("div", { class: "doubts" }, ...parts);
}

/** The card of a group. What is not known of it, as of one of another level, is left out. */
function groupCard(group, at) {
  const { name, gloss, size, nouns = [], captions = [], cohesion, typical, borderline = [], above = [] } = group;
  const facts = [element("span", {}, count(size, "picture"))];
  if (cohesion !== undefined) {
    const title = "Mean cosine of the pictures to the centre of the group: 1 if all are alike";
    facts.push(element("span", { title }, `cohesion ${cohesion.toFixed(2)}`));
  }
  const items = (texts) => texts.map((text) => element("li", {}, text));
  const parts = [
    crumbs(above),
    element("header", {}, element("h3", { id: `name-${at}` }, name), element("p", { class: "facts-line" }, ...facts)),
    gloss && element("p", { class: "gloss" }, gloss),
    nouns.length && element("ul", { class: "chips", "aria-label": "Typical nouns" }, ...items(nouns)),
    strip(`Most typical pictures of ${name}`, typical, "typical"),
    borderline.length && doubts(group),
    captions.length && element("details", {}, element("summary", {}, "Typical captions"), element("ul", { class: "captions" }, ...items(captions))),
    element("button", { type: "button", class: "all", "data-show": at }, `Show all ${count(size, "picture")}`),
  ];
  const attributes = { class: "card", id: `group-${at}`, "data-group": at, "aria-labelledby": `name-${at}` };
  return element("article", attributes, ...parts.filter(Boolean));
}

function groupSize({ name, size }, at, groups) {
  const drawn = (kind, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const bar = drawn("svg", { class: "bar", viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": true });
  bar.append(drawn("rect", { width: (100 * size) / groups[0].size, height: 1 }));
  return element("li", { "data-group": at }, element("a", { href: `#group-${at}` }, name), bar, element("span", { class: "number" }, size.toLocaleString("en")));
}

function groupLegend({ name }, at) {
  return element("li", {}, element("button", { type: "button", "data-group": at, "aria-pressed": false }, element("span", {}, name)));
}

function groupOption({ name, size }, at) {
  return element("option", { value: at }, `${name} (${size.toLocaleString("en")})`);
}
