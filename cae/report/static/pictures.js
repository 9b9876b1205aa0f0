"use strict";
// What is known of each picture, by its number, and its thumbnail. DATA comes from data.js, written by page.py.

function unpack(column) {
  if (Array.isArray(column)) return column;
  const arrays = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, int32: Int32Array };
  const bytes = Uint8Array.from(atob(column.base64), (character) => character.charCodeAt(0));
  return new arrays[column.type](bytes.buffer);
}

const pictures = (() => {
  const columns = Object.fromEntries(Object.entries(DATA.columns).map(([name, column]) => [name, unpack(column)]));
  const { columns: across, places, folder } = DATA.sheet;
  let lowerPaths; // for the search; made when it is first used
  let numbers; // of the rows; the same
  const colours = new Map(); // a group keeps its colour, whatever its place among the others

  return {
    count: DATA.count,
    // These three change with the level of the tree, and with edits.
    groups: DATA.groups,
    group: columns.group,
    runnerUp: columns.runnerUp,
    path: columns.path,
    confidence: columns.confidence,
    position: columns.position,
    row: columns.row,
    outlier: (i) => columns.outlier[i] === 1,
    /** Where the result that this one is compared with has a picture that it has in another group; else undefined. */
    movedFrom: (i) => DATA.movedFrom[columns.move[i]],

    /** The number of the picture that is in a row of the assignments. */
    numberOf(row) {
      if (!numbers) {
        numbers = new Uint32Array(DATA.count);
        columns.row.forEach((each, i) => (numbers[each] = i));
      }
      return numbers[row];
    },

    /** The groups of a state, which `describe_edited` in data.py has written, and where each picture is. */
    read(state) {
      const [group, runnerUp] = [state.group, state.runnerUp].map(unpack);
      const known = (rows) => rows.map((row) => this.numberOf(row));
      const groups = state.groups.map((each) => {
        if (!colours.has(each.id)) colours.set(each.id, colours.size);
        const { typical, borderline, odd } = each;
        return { ...each, colour: colours.get(each.id), typical: known(typical), borderline: known(borderline), odd: known(odd) };
      });
      return { groups, group: Int32Array.from(columns.row, (row) => group[row]), runnerUp: Int32Array.from(columns.row, (row) => runnerUp[row]) };
    },

    file: (i) => columns.path[i].slice(columns.path[i].lastIndexOf("/") + 1),
    weights: (i) => columns.weights.subarray(3 * i, 3 * i + 3),
    nouns: (i) => [...columns.nouns.subarray(3 * i, 3 * i + 3)].filter((j) => j >= 0).map((j) => columns.nounNames[j]),
    caption: (i) => columns.captionTexts[columns.caption[i]] ?? "",
    missing: (i) => columns.size[2 * i] === 0,

    /** Where the original may lie: beside the report, or where it was when the report was made. */
    urls(i) {
      if (STATE) return [`pictures/${columns.row[i]}`];
      if (DATA.links[i]) return [DATA.links[i]];
      const path = columns.path[i].split("/").map(encodeURIComponent).join("/");
      return DATA.roots.map((root) => root + path);
    },

    /** Where the thumbnail lies: its sheet, and its rectangle and the sheet's size in pixels. */
    place(i) {
      const sheet = Math.floor(columns.place[i] / places);
      const place = columns.place[i] % places;
      const [cell, taken] = columns.sheets.subarray(2 * sheet, 2 * sheet + 2);
      return {
        url: `${folder}${String(sheet).padStart(5, "0")}.webp`,
        x: (place % across) * cell,
        y: Math.floor(place / across) * cell,
        width: columns.size[2 * i],
        height: columns.size[2 * i + 1],
        sheetWidth: Math.min(taken, across) * cell,
        sheetHeight: Math.ceil(taken / across) * cell,
      };
    },

    /** Which pictures an entry of the list "Show" stands for: a test by number, or null for all. */
    only(entry) {
      if (entry === "all") return null;
      if (entry === "outliers") return this.outlier;
      if (entry === "moved") return (i) => columns.move[i] >= 0;
      const move = Number(entry);
      return (i) => columns.move[i] === move;
    },

    /** The pictures of a sequence that are in a group (-1: any), that `only` lets pass (null: all), and whose file, group,
     *  nouns or caption hold the words of a query. */
    search(sequence, query, group, only) {
      const words = query.toLowerCase().split(/\s+/).filter(Boolean);
      if (words.length) lowerPaths ??= columns.path.map((path) => path.toLowerCase());
      const tests = words.map((word) => {
        const holds = (texts) => texts.map((text) => text.toLowerCase().includes(word));
        const inGroup = holds(this.groups.map(({ name }) => name));
        const inNoun = holds(columns.nounNames);
        const inCaption = holds(columns.captionTexts);
        return (i) =>
          inGroup[this.group[i]] ||
          inNoun[columns.nouns[3 * i]] ||
          inNoun[columns.nouns[3 * i + 1]] ||
          inNoun[columns.nouns[3 * i + 2]] ||
          inCaption[columns.caption[i]] ||
          lowerPaths[i].includes(word);
      });
      if (group >= 0) tests.push((i) => this.group[i] === group);
      if (only) tests.push(only);
      return sequence.filter((i) => tests.every((test) => test(i)));
    },
  };
})();

/** The tree of groups: all its levels from coarse to fine follow from the leaf that each picture is in. Edits are part of the
 *  level that the result is cut at, its own, and of no other. */
const levels = DATA.tree && (() => {
  const { roots, splits, leaves, names, glosses, cut, leaf } = DATA.tree;
  const drawn = { groups: pictures.groups, group: pictures.group, runnerUp: pictures.runnerUp };
  let own = drawn;
  const leafOf = unpack(leaf);
  const parent = (node) => (node < roots ? -1 : splits[(node - roots) >> 1]);
  // The nodes of a level are those that its splits have made by then.
  const nodesOf = (n) => leaves.map((node) => {
    while (node >= roots + 2 * (n - roots)) node = parent(node);
    return node;
  });

  /** The groups that a node is part of, the coarsest first. Names of fewer than a handful of groups say little. */
  function above(node) {
    const found = [], handful = 5;
    for (let at = parent(node); at >= 0 && roots + splits.indexOf(at) >= handful; at = parent(at)) found.unshift(names[at]);
    return found;
  }

  return {
    cut,

    /** What `pictures` says of groups with n of them. */
    at(n) {
      if (n === cut) return own;
      const nodes = nodesOf(n);
      const members = new Map();
      leafOf.forEach((leaf, i) => {
        const node = nodes[leaf];
        if (!members.has(node)) members.set(node, []);
        members.get(node).push(i);
      });
      const order = [...members.keys()].sort((a, b) => members.get(b).length - members.get(a).length || a - b);
      const place = new Map(order.map((node, at) => [node, at]));
      // Pictures are numbered from the most typical of the group on that they were drawn in.
      const rank = (i) => i - drawn.groups[drawn.group[i]].first;
      const groups = order.map((node) => ({
        name: names[node],
        gloss: glosses[node],
        size: members.get(node).length,
        typical: members.get(node).toSorted((a, b) => rank(a) - rank(b)).slice(0, 9),
        above: above(node),
      }));
      const group = Int32Array.from(leafOf, (leaf) => place.get(nodes[leaf]));
      return { groups, group, runnerUp: new Int32Array(pictures.count).fill(-1) };
    },

    /** Take edits in. */
    edit(view) {
      own = view;
    },

    /** The names above a group of the result's own level, told by its most typical picture. */
    aboveOwn: ({ first, typical: [i = first] = [] }) => above(nodesOf(cut)[leafOf[i]]),
  };
})();

/** A group's colour: hues a golden angle apart, so that neighbours in the list never look alike. */
function groupColour(group, dark) {
  const hue = (250 + group * 137.508) % 360;
  const lightness = (dark ? 74 : 58) + [0, 7, -7][group % 3];
  return `oklch(${lightness}% 0.135 ${hue.toFixed(1)})`;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

/** What a screen reader says of a picture. */
function spoken(i) {
  const parts = [pictures.file(i), pictures.groups[pictures.group[i]].name];
  if (pictures.outlier(i)) parts.push("fits no group");
  if (pictures.missing(i)) parts.push("file missing");
  return parts.join(", ");
}

const whenSeen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) loadThumbnail(target);
  },
  { rootMargin: "400px" },
);

function loadThumbnail(made) {
  made.style.backgroundImage = `url("${made.dataset.sheet}")`;
  whenSeen.unobserve(made);
}

// On paper all is seen.
addEventListener("beforeprint", () => document.querySelectorAll("[data-sheet]").forEach(loadThumbnail));

/** The thumbnail of a picture, loaded when it comes into view; it fills the box around it as far as its shape allows. */
function thumbnail(i, { lazy = true } = {}) {
  if (pictures.missing(i)) return element("span", { class: "thumbnail missing" }, "missing");
  const { url, x, y, width, height, sheetWidth, sheetHeight } = pictures.place(i);
  const made = element("span", { class: "thumbnail", "data-sheet": url });
  const share = (offset, whole, part) => (whole === part ? 0 : (100 * offset) / (whole - part));
  Object.assign(made.style, {
    width: `${(100 * width) / Math.max(width, height)}%`,
    aspectRatio: `${width} / ${height}`,
    backgroundSize: `${(100 * sheetWidth) / width}% ${(100 * sheetHeight) / height}%`,
    backgroundPosition: `${share(x, sheetWidth, width)}% ${share(y, sheetHeight, height)}%`,
  });
  if (lazy) whenSeen.observe(made);
  else loadThumbnail(made);
  return made;
}

/** A thumbnail to click on; `data-picture` tells which. */
function pictureButton(i) {
  const made = element("button", { type: "button", class: pictures.outlier(i) ? "picture outlier" : "picture", "data-picture": i, "aria-label": spoken(i), title: pictures.path[i] });
  made.append(thumbnail(i));
  return made;
}
