"use strict";
// Changing the groups: their names, merging, splitting, pinning, moving pictures, taking back. Only where the page is served.

const chosenGroups = new Set(); // ids, in the order in which they were chosen
let ownGroups = []; // of the level that can be changed, whichever is looked at

function groupOf(id) {
  return ownGroups.find((group) => group.id === id);
}

/** A card with what can be done to its group; of another level of the tree, nothing can. */
function editableCard(group, at) {
  const drawn = find(`#group-${at}`);
  const shows = JSON.stringify(group);
  if (drawn?.shows === shows) return drawn; // a new one would have to find its height again
  const card = groupCard(group, at);
  if (group.id === undefined) return card;
  card.shows = shows;
  const { id, name, pinned, size } = group;
  const button = (what, text, label, more = {}) =>
    element("button", { type: "button", "data-do": what, "aria-label": `${label} ${name}`, ...more }, text);
  const box = element("input", { type: "checkbox", class: "choose", "aria-label": `Choose ${name} to merge it` });
  box.checked = chosenGroups.has(id);
  const tools = element(
    "div",
    { class: "do", role: "group", "aria-label": `Change ${name}` },
    element("label", {}, box, " Merge"),
    button("rename", "Rename", "Rename"),
    ...(size > 1 ? [button("split", "Split …", "Split")] : []),
    button("pin", pinned === size ? "Pinned" : "Pin", pinned === size ? "Pinned:" : "Pin", pinned === size ? { disabled: "" } : {}),
    button("take", "Take away …", "Take away"),
  );
  if (pinned && pinned < size) card.querySelector(".facts-line").append(element("span", {}, `${pinned.toLocaleString("en")} pinned`));
  card.dataset.id = id;
  card.querySelector("header").setAttribute("draggable", "true");
  card.querySelector("header").after(tools);
  return card;
}

/** The element of a group's card, wherever the card is by now. */
function inCard(id, selector) {
  return find(`.card[data-id="${id}"] ${selector}`);
}

/** Remember where the keyboard is and what is being typed; returns what brings both back once the cards are drawn anew. */
function keepPlace() {
  const at = document.activeElement;
  const form = find(".rename");
  const [card, renamed] = [at, form].map((each) => Number(each?.closest(".card[data-id]")?.dataset.id ?? -1));
  const selector = at?.dataset.do ? `[data-do="${at.dataset.do}"]` : ".choose";
  return () => {
    if (form && !form.isConnected && groupOf(renamed)) startRename(renamed, form.querySelector("input").value);
    else if (!at.isConnected && card >= 0) (inCard(card, `${selector}:enabled`) ?? inCard(card, "[data-do]") ?? find("#dock")).focus({ preventScroll: true });
  };
}

// ---- names ----

function startRename(id, text = groupOf(id).name) {
  const title = inCard(id, "h3");
  if (!title) return inCard(id, ".rename input")?.focus(); // it is being renamed, or another level is looked at
  const input = element("input", { type: "text", maxlength: 1000, "aria-label": `New name of ${groupOf(id).name}`, "aria-describedby": `unsaved-${id}`, autocomplete: "off" });
  const hint = element("span", { class: "hint", id: `unsaved-${id}` }, "Not saved yet: Enter saves, Escape leaves it.");
  const form = element("form", { class: "rename" }, input, element("button", { type: "submit" }, "Save"), element("button", { type: "button", "data-cancel": "" }, "Cancel"), hint);
  const stop = () => {
    form.replaceWith(title);
    inCard(id, "[data-do='rename']")?.focus();
  };
  input.value = text;
  title.replaceWith(form);
  input.select();
  form.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  form.querySelector("[data-cancel]").addEventListener("click", stop);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = input.value.trim();
    const before = groupOf(id).name;
    stop();
    if (name === before) return;
    const saved = await server.edit("rename", { group: id, name }, `Saved: the group is called ${name}.`);
    if (!saved && groupOf(id)) startRename(id, name);
  });
}

// ---- merging ----

async function merge(ids) {
  const [first, ...others] = ids.map((id) => groupOf(id).name);
  const saved = await server.edit("merge", { groups: ids }, `Saved: ${others.join(", ")} now part of ${first}.`);
  if (!saved) return;
  clearGroups();
  inCard(ids[0], "[data-do='rename']")?.focus();
}

function chooseGroup(id, on) {
  if (on) chosenGroups.add(id);
  else chosenGroups.delete(id);
  showChosenGroups();
}

function showChosenGroups() {
  for (const id of chosenGroups) if (!groupOf(id)) chosenGroups.delete(id);
  const names = [...chosenGroups].map((id) => groupOf(id).name);
  find("#chosen-groups").hidden = !names.length;
  find("#chosen-groups-said").textContent = names.length < 2 ? `${names.join()}: choose another group to merge it with` : `${count(names.length, "group")} to merge as ${names[0]}`;
  find("#merge").disabled = names.length < 2;
}

function listenToDrags(cards) {
  let dragged = null;
  const over = (event) => {
    const card = dragged === null ? null : event.target.closest(".card[data-id]");
    return card && Number(card.dataset.id) !== dragged ? card : null;
  };
  cards.addEventListener("dragstart", (event) => {
    if (!event.target.matches?.("header[draggable]")) return; // text that is selected, or a thumbnail
    dragged = Number(event.target.closest(".card").dataset.id);
    event.dataTransfer.effectAllowed = "move";
  });
  cards.addEventListener("dragover", (event) => {
    const card = over(event);
    for (const each of cards.querySelectorAll(".drop")) if (each !== card) each.classList.remove("drop");
    if (!card) return;
    card.classList.add("drop");
    event.preventDefault();
  });
  cards.addEventListener("drop", (event) => {
    const card = over(event);
    if (!card) return;
    event.preventDefault();
    merge([Number(card.dataset.id), dragged]);
  });
  cards.addEventListener("dragend", () => {
    dragged = null;
    for (const each of cards.querySelectorAll(".drop")) each.classList.remove("drop");
  });
}

// ---- splitting ----

const split = {
  id: -1,

  open(id) {
    this.id = id;
    find("#split-title").textContent = `Split ${groupOf(id).name}`;
    find("#split-into").max = Math.min(groupOf(id).size, 100);
    find("#split-into").value = 2;
    find("#split").showModal();
    return this.preview();
  },

  async preview() {
    const { id } = this;
    const into = Number(find("#split-into").value);
    // Another group, or another number, was asked for since.
    const isStale = () => id !== this.id || into !== Number(find("#split-into").value);
    find("#split-do").disabled = true;
    say("Looking for parts …", "busy");
    try {
      const { parts } = await server.ask("api/split", { group: id, into });
      if (isStale()) return;
      find("#parts").replaceChildren(
        ...parts.map(({ name, size, typical }) =>
          element("li", {}, element("h3", {}, name, " ", element("span", { class: "soft" }, count(size, "picture"))), strip(`Pictures of ${name}`, typical.map((row) => pictures.numberOf(row)), "part")),
        ),
      );
      find("#split-do").disabled = false;
      say(`${count(parts.length, "part")}. Nothing is changed yet.`);
    } catch (error) {
      if (isStale()) return;
      find("#parts").replaceChildren();
      say(error.message, "failed");
    }
  },

  async make() {
    const name = groupOf(this.id)?.name ?? "the group"; // it may be gone by now, which the server says
    const into = Number(find("#split-into").value);
    if (!(await server.edit("split", { group: this.id, into }, `Saved: ${name} split in ${into}.`))) return;
    find("#split").close();
    say(`Saved: ${name} split in ${into}.`);
    inCard(this.id, "[data-do='rename']")?.focus();
  },
};

// ---- pictures ----

function showPicks() {
  const n = picks.numbers.length;
  find("#picked").hidden = !n;
  find("#picked-said").textContent = `${count(n, "picture")} chosen`;
  page.map.chosen = picks.numbers;
  page.map.mark();
}

function listGroups() {
  const { value } = find("#move-to");
  const options = ownGroups.map(({ id, name }) => element("option", { value: id }, name));
  find("#move-to").replaceChildren(element("option", { value: "" }, "choose a group"), ...options);
  find("#move-to").value = value && groupOf(Number(value)) ? value : "";
  find("#move").disabled = !find("#move-to").value;
}

async function move() {
  const id = Number(find("#move-to").value);
  const n = picks.numbers.length;
  if (await server.edit("move", { pictures: picks.rows, group: id }, `Saved: ${count(n, "picture")} now in ${groupOf(id).name}.`)) clearPicks();
}

function clearPicks() {
  picks.clear();
  find("#dock").focus();
}

// ---- what can be pressed ----

function showHistory({ undo, redo }) {
  for (const [id, verb, what] of [["#undo", "Undo", undo], ["#redo", "Redo", redo]]) {
    find(id).disabled = !what;
    find(id).setAttribute("aria-label", what ? `${verb}: ${what}` : `Nothing to ${verb.toLowerCase()}`);
    find(id).title = what ? `${verb}: ${what}` : "";
  }
}

const stepBack = (kind) => !find(`#${kind}`).disabled && server.edit(kind, {}, kind === "undo" ? "Taken back, and saved." : "Made again, and saved.");

function listenToEdits() {
  const on = (selector, type, act) => find(selector).addEventListener(type, act);
  on(".cards", "click", (event) => {
    const card = event.target.closest(".card[data-id]");
    const what = event.target.closest("[data-do]")?.dataset.do;
    if (!card || !what) return;
    const id = Number(card.dataset.id);
    if (what === "rename") startRename(id);
    else if (what === "split") split.open(id);
    else if (what === "take") take.open(`group ${id}`);
    else if (what === "pin") server.edit("pin", { group: id }, `Saved: ${groupOf(id).name} keeps its pictures and its name.`);
  });
  on(".cards", "change", (event) => {
    if (event.target.matches(".choose")) chooseGroup(Number(event.target.closest(".card").dataset.id), event.target.checked);
  });
  listenToDrags(find(".cards"));
  on("#merge", "click", () => merge([...chosenGroups]));
  on("#clear-groups", "click", clearGroups);
  on("#split-into", "input", () => split.preview());
  on("#split-form", "submit", (event) => {
    event.preventDefault();
    split.make();
  });
  on("#move-to", "change", (event) => (find("#move").disabled = !event.target.value));
  on("#move", "click", move);
  on("#pin", "click", () => server.edit("pin", { pictures: picks.rows }, `Saved: ${count(picks.numbers.length, "picture")} pinned where they are.`));
  on("#clear-picks", "click", clearPicks);
  on("#pick-all", "click", () => picks.add(page.state.found));
  on("#undo", "click", () => stepBack("undo"));
  on("#redo", "click", () => stepBack("redo"));
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || event.target.matches("input[type='text'], input[type='search']") || find("dialog[open]")) return;
    event.preventDefault();
    stepBack(event.shiftKey ? "redo" : "undo");
  });
}

function clearGroups() {
  chosenGroups.clear();
  for (const box of all(".choose")) box.checked = false;
  showChosenGroups();
  find("#dock").focus();
}
