"use strict";
// What is known of each picture, by its number, and its thumbnail. DATA comes from data.js, written by page.py.

const pictures = (() => {
  const arrays = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, int32: Int32Array };

  function unpack(column) {
    if (Array.isArray(column)) return column;
    const bytes = Uint8Array.from(atob(column.base64), (character) => character.charCodeAt(0));
    return new arrays[column.type](bytes.buffer);
  }

  const columns = Object.fromEntries(Object.entries(DATA.columns).map(([name, column]) => [name, unpack(column)]));
  const { columns: across, places, folder } = DATA.sheet;
  let lowerPaths; // for the search; made when it is first used

  return {
    count: DATA.count,
    groups: DATA.groups,
    path: columns.path,
    group: columns.group,
    runnerUp: columns.runnerUp,
    confidence: columns.confidence,
    position: columns.position,
    outlier: (i) => columns.outlier[i] === 1,
    /** Where the result that this one is compared with has a picture that it has in another group; else undefined. */
    movedFrom: (i) => DATA.movedFrom[columns.move[i]],

    file: (i) => columns.path[i].slice(columns.path[i].lastIndexOf("/") + 1),
    weights: (i) => columns.weights.subarray(3 * i, 3 * i + 3),
    nouns: (i) => [...columns.nouns.subarray(3 * i, 3 * i + 3)].filter((j) => j >= 0).map((j) => columns.nounNames[j]),
    caption: (i) => columns.captionTexts[columns.caption[i]] ?? "",
    missing: (i) => columns.size[2 * i] === 0,

    /** Where the original may lie: beside the report, or where it was when the report was made. */
    urls(i) {
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
        const inGroup = holds(DATA.groups.map(({ name }) => name));
        const inNoun = holds(columns.nounNames);
        const inCaption = holds(columns.captionTexts);
        return (i) =>
          inGroup[columns.group[i]] ||
          inNoun[columns.nouns[3 * i]] ||
          inNoun[columns.nouns[3 * i + 1]] ||
          inNoun[columns.nouns[3 * i + 2]] ||
          inCaption[columns.caption[i]] ||
          lowerPaths[i].includes(word);
      });
      if (group >= 0) tests.push((i) => columns.group[i] === group);
      if (only) tests.push(only);
      return sequence.filter((i) => tests.every((test) => test(i)));
    },
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
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      target.style.backgroundImage = `url("${target.dataset.sheet}")`;
      whenSeen.unobserve(target);
    }
  },
  { rootMargin: "400px" },
);

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
  else made.style.backgroundImage = `url("${url}")`;
  return made;
}

/** A thumbnail to click on; `data-picture` tells which. */
function pictureButton(i) {
  const made = element("button", { type: "button", class: pictures.outlier(i) ? "picture outlier" : "picture", "data-picture": i, "aria-label": spoken(i), title: pictures.path[i] });
  made.append(thumbnail(i));
  return made;
}
