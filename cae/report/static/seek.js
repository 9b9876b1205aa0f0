"use strict";
// Pictures by what they show or what they are like, and those that are there twice. Only where the page is served.

const seek = {
  loaded: false,

  async find(body, label) {
    if (body.text && !this.loaded) say("Searching. The first time the encoder is loaded, which takes a while; the search in names goes on meanwhile.", "busy");
    else say("Searching …", "busy");
    try {
      const { pictures: rows } = await server.ask("api/search", body);
      this.loaded ||= Boolean(body.text);
      find("#ranked-said").textContent = label;
      say(`${count(rows.length, "picture")} found, the best first.`);
      page.showAllOf({ ranking: Uint32Array.from(rows, (row) => pictures.numberOf(row)) }, "#ranked-clear");
    } catch (error) {
      say(error.message, "failed");
    }
  },

  like(i) {
    return this.find({ like: pictures.row[i] }, `The pictures most like ${pictures.file(i)}, the best first`);
  },

  text(text) {
    return this.find({ text }, `The pictures nearest to “${text}”, the best first`);
  },

  clear() {
    find("#meaning").value = "";
    page.showAllOf({}, "#meaning");
  },
};

const copies = {
  found: null,
  shown: 0,

  async look() {
    find("#copies-look").disabled = true;
    say("Comparing all pictures …", "busy");
    try {
      this.found = await server.ask("api/duplicates", {});
      this.shown = 0;
      find("#copies-list").replaceChildren();
      this.more();
      const { groups, missing } = this.found;
      const worse = groups.reduce((sum, { copies }) => sum + copies.length - 1, 0);
      const gone = missing ? ` ${count(missing, "picture")} could not be compared: the files are gone.` : "";
      find("#copies-said").textContent = groups.length ? `${count(groups.length, "set")} of copies; ${count(worse, "picture")} beside the best ones.${gone}` : `No picture is there twice.${gone}`;
      find("#copies-do").hidden = !groups.length;
      say(find("#copies-said").textContent);
    } catch (error) {
      say(error.message, "failed");
    }
    find("#copies-look").disabled = false;
  },

  /** Show further sets. */
  more(n = 20) {
    const { groups } = this.found;
    find("#copies-list").append(...groups.slice(this.shown, this.shown + n).map((group) => this.set(group)));
    this.shown = Math.min(this.shown + n, groups.length);
    find("#copies-more").hidden = this.shown === groups.length;
  },

  set({ kind, copies: [best, ...rest] }) {
    const one = (copy, note) => {
      const facts = [`${copy.width} × ${copy.height}`, `${Math.ceil(copy.bytes / 1024).toLocaleString("en")} KiB`, note];
      const i = pictures.numberOf(copy.row);
      return element("li", {}, picks.tile(i), element("div", { class: "path" }, pictures.path[i]), element("span", { class: "hint" }, facts.join(", ")));
    };
    const note = ({ distance }) => (kind === "exact" ? "the same file" : `differs in ${distance} of 64 bits`);
    return element("li", {}, element("ul", { class: "copies", role: "group", "aria-label": `Copies of ${pictures.file(pictures.numberOf(best.row))}` }, one(best, "the best"), ...rest.map((copy) => one(copy, note(copy)))));
  },

  choose() {
    const rows = this.found.groups.flatMap(({ copies: [, ...rest] }) => rest.map(({ row }) => row));
    picks.add(rows.map((row) => pictures.numberOf(row)));
    say(`${count(rows.length, "picture")} chosen: all copies but the best.`);
  },

  async list() {
    try {
      say(`Written: ${(await server.ask("api/duplicates/list", {})).file}`);
    } catch (error) {
      say(error.message, "failed");
    }
  },
};

function listenToSeeking() {
  find("#meaning-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = find("#meaning").value.trim();
    if (text) seek.text(text);
  });
  find("#ranked-clear").addEventListener("click", () => seek.clear());
  find("#more-like").addEventListener("click", () => {
    const i = page.panel.list[page.panel.at];
    page.panel.dialog.close();
    seek.like(i);
  });
  find("#copies-look").addEventListener("click", () => copies.look());
  find("#copies-more").addEventListener("click", () => copies.more());
  find("#copies-choose").addEventListener("click", () => copies.choose());
  find("#copies-write").addEventListener("click", () => copies.list());
}
