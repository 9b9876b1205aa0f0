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

  // The cell of a sheet is as large as its largest thumbnail.
  const cells = new Uint8Array(Math.ceil(DATA.count / places));
  for (let i = 0; i < DATA.count; i++) {
    const sheet = Math.floor(i / places);
    cells[sheet] = Math.max(cells[sheet], columns.size[2 * i], columns.size[2 * i + 1]);
  }

  return {
    count: DATA.count,
    groups: DATA.groups,
    path: columns.path,
    group: columns.group,
    runnerUp: columns.runnerUp,
    confidence: columns.confidence,
    position: columns.position,

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
      const sheet = Math.floor(i / places);
      const place = i % places;
      const cell = cells[sheet];
      const onSheet = Math.min(places, DATA.count - sheet * places);
      return {
        url: `${folder}${String(sheet).padStart(5, "0")}.webp`,
        x: (place % across) * cell,
        y: Math.floor(place / across) * cell,
        width: columns.size[2 * i],
        height: columns.size[2 * i + 1],
        sheetWidth: Math.max(Math.min(onSheet, across) * cell, 1),
        sheetHeight: Math.max(Math.ceil(onSheet / across) * cell, 1),
      };
    },

    /** Numbers of the pictures in a group (-1: any) whose file, group, nouns or caption hold the words of a query. */
    search(query, group) {
      const words = query.toLowerCase().split(/\s+/).filter(Boolean);
      const holds = (texts) => words.map((word) => texts.map((text) => text.toLowerCase().includes(word)));
      const inGroup = holds(DATA.groups.map(({ name }) => name));
      const inNoun = holds(columns.nounNames);
      const inCaption = holds(columns.captionTexts);
      const found = [];
      const [start, end] =
        group < 0 ? [0, DATA.count] : [DATA.groups[group].first, DATA.groups[group].first + DATA.groups[group].size];
      for (let i = start; i < end; i++) {
        const fits = (word, w) =>
          inGroup[w][columns.group[i]] ||
          inNoun[w][columns.nouns[3 * i]] ||
          inNoun[w][columns.nouns[3 * i + 1]] ||
          inNoun[w][columns.nouns[3 * i + 2]] ||
          inCaption[w][columns.caption[i]] ||
          columns.path[i].toLowerCase().includes(word);
        if (words.every(fits)) found.push(i);
      }
      return found;
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
  const name = `${pictures.file(i)}, ${pictures.groups[pictures.group[i]].name}`;
  return pictures.missing(i) ? `${name}, file missing` : name;
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
  const made = element("button", { type: "button", class: "picture", "data-picture": i, "aria-label": spoken(i), title: pictures.path[i] });
  made.append(thumbnail(i));
  return made;
}
