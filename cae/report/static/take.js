"use strict";
// Taking pictures away: the dialog of an export. Only where the page is served.

const take = {
  /** The rows of what is chosen in the list: null for all. */
  rows() {
    const [what, id] = find("#take-what").value.split(" ");
    if (what === "all") return null;
    if (what === "picks") return picks.rows;
    if (what === "found") return Array.from(page.state.found, (i) => pictures.row[i]);
    const at = pictures.groups.findIndex((group) => group.id === Number(id));
    return Array.from(pictures.row).filter((_, i) => pictures.group[i] === at);
  },

  /** Open it; `what` is an entry of its list. */
  open(what) {
    const entry = (value, text) => element("option", { value }, text);
    const entries = [entry("all", `all ${count(pictures.count, "picture")}`)];
    if (picks.numbers.length) entries.push(entry("picks", `the ${count(picks.numbers.length, "picture")} chosen`));
    if (page.state.found.length && page.state.found.length < pictures.count) entries.push(entry("found", `the ${count(page.state.found.length, "picture")} found`));
    const groups = pictures.groups.filter(({ id }) => id !== undefined);
    entries.push(...groups.map(({ id, name, size }) => entry(`group ${id}`, `${name} (${size.toLocaleString("en")})`)));
    find("#take-what").replaceChildren(...entries);
    find("#take-what").value = what;
    this.suggest();
    find("#take").showModal();
    say("");
  },

  /** A name for the folder, and what fits the form. */
  suggest() {
    const [what, id] = find("#take-what").value.split(" ");
    const names = { all: "all", picks: "chosen", found: page.state.query || find("#meaning").value || "found", group: groupOf(Number(id))?.name };
    find("#take-name").value = `${names[what]} ${find("#take-to").value}`;
    const inFolders = find("#take-to").value === "folders";
    find("#take-nested").disabled = !inFolders || !levels;
    if (find("#take-nested").disabled) find("#take-nested").checked = false;
    find("#take-by").disabled = !["folders", "hf", "fiftyone"].includes(find("#take-to").value);
  },

  async make() {
    find("#take-do").disabled = true;
    say("Writing files …", "busy");
    try {
      const done = await server.ask("api/exports", {
        pictures: this.rows(),
        to: find("#take-to").value,
        name: find("#take-name").value,
        by: find("#take-by").value,
        nested: find("#take-nested").checked,
        without_duplicates: find("#take-without").checked,
      });
      const notes = [`${count(done.written, "file")} in ${done.folder}`];
      if (done.removed) notes.push(`${done.removed.toLocaleString("en")} of an earlier export removed`);
      if (done.missing) notes.push(`${count(done.missing, "picture")} left out: the files are gone`);
      if (done.changed) notes.push(`${count(done.changed, "picture")} no longer as they were when they were grouped`);
      say(`${notes.join("; ")}.`);
    } catch (error) {
      say(error.message, "failed");
    }
    find("#take-do").disabled = false;
  },

  listen() {
    for (const selector of ["#take-what", "#take-to"]) find(selector).addEventListener("change", () => this.suggest());
    find("#take-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.make();
    });
    for (const button of all("[data-take]")) button.addEventListener("click", () => this.open(button.dataset.take));
  },
};
