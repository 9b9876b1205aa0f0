"use strict";
// The pictures that are chosen, to be moved, pinned or taken away. Only where the page is served.

const picks = (() => {
  const chosen = new Set(); // numbers
  let last = -1; // the other end of what a click with Shift chooses

  function changed() {
    for (const box of all(".pick")) box.checked = chosen.has(Number(box.dataset.pick));
    document.dispatchEvent(new Event("pickschange"));
  }

  /** Choose or leave out a picture, or with `toLast` all in the gallery from the last one to it. */
  function set(i, on, toLast = false) {
    const { found } = page.state;
    const [from, to] = [found.indexOf(last), found.indexOf(i)].sort((a, b) => a - b);
    const range = toLast && from >= 0 ? found.subarray(from, to + 1) : [i];
    for (const each of range) on ? chosen.add(each) : chosen.delete(each);
    last = i;
    changed();
  }

  document.addEventListener("click", (event) => {
    const box = event.target.closest(".pick");
    if (box) set(Number(box.dataset.pick), box.checked, event.shiftKey);
  });

  return {
    get numbers() {
      return [...chosen];
    },

    get rows() {
      return [...chosen].map((i) => pictures.row[i]);
    },

    has: (i) => chosen.has(i),
    set,

    add(numbers) {
      for (const i of numbers) chosen.add(i);
      changed();
    },

    clear() {
      chosen.clear();
      last = -1;
      changed();
    },

    /** A thumbnail with a box to choose it by. */
    tile(i) {
      const box = element("input", { type: "checkbox", class: "pick", "data-pick": i, "aria-label": `Choose ${pictures.file(i)}` });
      box.checked = chosen.has(i);
      return element("span", { class: "tile" }, pictureButton(i), box);
    },

    /** Whether a click on a thumbnail chooses it, as with Shift, Ctrl or ⌘, instead of opening it. */
    take(button, event) {
      if (!button.closest(".tile") || !(event.shiftKey || event.ctrlKey || event.metaKey)) return false;
      const i = Number(button.dataset.picture);
      set(i, event.shiftKey || !chosen.has(i), event.shiftKey);
      return true;
    },
  };
})();
