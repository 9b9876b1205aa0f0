"use strict";
// The page: what is searched for, and the groups, the map and the gallery that show what was found.

const PAGE_SIZE = 120;

const page = (() => {
  const state = { query: "", group: -1, only: "all", order: "typical", ranking: null, page: 0, found: [] };
  const panel = new Panel(find("#panel"));
  const map = new PictureMap(find("#canvas"), find("#hover"), {
    open: (i) => panel.open(i, state.found),
    said: (i) => (find("#map-said").textContent = spoken(i)),
  });

  // ---- search, group and order: what is found ----

  // Numbers in names count as numbers, and é comes after e. A collator would know more, and take four times as long.
  const sortable = (path) => path.normalize("NFKD").toLowerCase().replace(/\d+/g, (digits) => digits.padStart(12, "0"));
  const numbers = Uint32Array.from({ length: pictures.count }, (_, i) => i);
  const by = (keys) => numbers.toSorted((a, b) => (keys[a] < keys[b] ? -1 : Number(keys[a] > keys[b])));
  const orders = {
    typical: () => numbers,
    unsure: () => by(pictures.confidence),
    path: () => by(pictures.path.map(sortable)),
  };
  const sequences = {}; // all pictures in each order that was asked for

  function update(page = 0) {
    const sequence = state.ranking ?? (sequences[state.order] ??= orders[state.order]());
    state.found = pictures.search(sequence, state.query, state.group, pictures.only(state.only));
    state.page = page;
    showGroups();
    showOnMap();
    showPage();
  }

  function showGroups() {
    const groups = new Set(state.query ? state.found.map((i) => pictures.group[i]) : []);
    const cards = all(".card");
    for (const card of cards) {
      card.hidden = Boolean(state.query) && state.group < 0 && !groups.has(Number(card.dataset.group));
    }
    const left = cards.filter((card) => !card.hidden).length;
    find("#groups-found").textContent = left === cards.length ? "" : `${count(left, "group")} of ${cards.length} with “${state.query}”`;
  }

  function showOnMap() {
    if (state.found.length === pictures.count) return map.show(null);
    const shown = new Uint8Array(pictures.count);
    for (const i of state.found) shown[i] = 1;
    map.show(shown);
  }

  function showPage() {
    const pages = Math.max(Math.ceil(state.found.length / PAGE_SIZE), 1);
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const start = state.page * PAGE_SIZE;
    const numbers = state.found.subarray(start, start + PAGE_SIZE);
    find("#gallery").replaceChildren(...Array.from(numbers, (i) => (STATE ? picks.tile(i) : pictureButton(i))));
    find("#hits").textContent = count(state.found.length, "picture");
    find("#hits").hidden = !state.query;
    find("#pick-all").disabled = !state.found.length;
    find("#found").textContent = state.found.length ? count(state.found.length, "picture") : "No picture fits. Search for another word, or look in all groups.";
    find("#page").value = state.page + 1;
    find("#page").max = pages;
    find("#last-page").textContent = pages.toLocaleString("en");
    find("[data-turn='-1']").disabled = state.page === 0;
    find("[data-turn='1']").disabled = state.page === pages - 1;
    find(".pages").hidden = pages === 1;
  }

  function turnTo(page) {
    state.page = page;
    showPage();
    jumpToPictures();
  }

  function showGroup(group, page = 0) {
    state.group = group;
    find("#group").value = group;
    for (const button of all("#legend button")) button.setAttribute("aria-pressed", Number(button.dataset.group) === group);
    update(page);
  }

  /** One group, or one entry of the list "Show", and nothing else that would leave some of it out. */
  function showAllOf({ group = -1, only = "all", ranking = null }, focus) {
    Object.assign(state, { query: "", only, ranking });
    find("#query").value = "";
    find("#order").disabled = Boolean(ranking);
    find("#ranked").hidden = !ranking;
    if (find("#only")) find("#only").value = only;
    showGroup(group);
    jumpToPictures();
    find(focus).focus({ preventScroll: true });
  }

  // ---- levels of the tree ----

  const lists = { ".cards": STATE ? (group, at) => editableCard(group, at) : groupCard, ".sizes": groupSize, "#legend": groupLegend, "#group": groupOption };
  const written = {}; // what the page came with, for the level that it came with

  /** Show the groups that `pictures` has now. */
  function drawGroups(own) {
    for (const [selector, make] of Object.entries(lists)) {
      const list = find(selector);
      written[selector] ??= [...list.children];
      const kept = selector === "#group" ? [written[selector][0]] : []; // all groups
      list.replaceChildren(...(own && !STATE ? written[selector] : [...kept, ...pictures.groups.map(make)]));
      paintGroups(list);
    }
    map.regroup();
  }

  /** Show the groups of another level; pictures, map and search stay as they are. */
  function showLevel(n) {
    Object.assign(pictures, levels.at(n));
    drawGroups(n === levels.cut);
    const said = n === levels.cut ? find("#level-said").dataset.own : count(n, "group");
    find("#level-said").textContent = said;
    find("#level").setAttribute("aria-valuetext", said);
    showGroup(-1);
  }

  /** Show what edits have made of the groups. The group that is looked at stays, if it is still there. */
  function showEdited(edited) {
    const looked = pictures.groups[state.group]?.id;
    const view = pictures.read(edited);
    const said = count(view.groups.length, "group");
    if (levels) {
      levels.edit(view);
      view.groups.forEach((group) => (group.above = levels.aboveOwn(group)));
      if (find("#level")) {
        find("#level").value = levels.cut;
        find("#level").setAttribute("aria-valuetext", said);
        find("#level-said").textContent = find("#level-said").dataset.own = said;
      }
    }
    Object.assign(pictures, view);
    const lead = `${count(pictures.count, "picture")} in ${said}`;
    find(".lead").textContent = lead;
    document.title = `${find("#title").textContent}: ${lead}`;
    drawGroups(true);
    showGroup(looked === undefined ? -1 : pictures.groups.findIndex(({ id }) => id === looked), state.page);
  }

  /** Cards out of sight have a guessed height; a jump past them lands where it should once they have their own. */
  function layOutCards() {
    find(".cards").classList.add("laid-out");
  }

  function jumpToPictures() {
    layOutCards();
    find("#pictures").scrollIntoView();
  }

  // ---- what can be pressed ----

  let typing;
  find("#query").addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      state.query = event.target.value.trim();
      update();
    }, 80);
  });
  find("#query").addEventListener("keydown", (event) => {
    if (event.key === "Enter") jumpToPictures();
  });
  find("#group").addEventListener("change", (event) => showGroup(Number(event.target.value)));
  find("#only")?.addEventListener("change", (event) => {
    state.only = event.target.value;
    update();
  });
  find("#order").addEventListener("change", (event) => {
    state.order = event.target.value;
    update();
  });
  for (const button of all("[data-turn]")) {
    button.addEventListener("click", () => turnTo(state.page + Number(button.dataset.turn)));
  }
  find("#page").addEventListener("change", (event) => turnTo(Number(event.target.value) - 1 || 0));
  find(".cards").addEventListener("click", (event) => {
    const button = event.target.closest("[data-show]");
    if (button) showAllOf({ group: Number(button.dataset.show) }, "#group");
  });
  for (const button of all("[data-only]")) {
    button.addEventListener("click", () => showAllOf({ only: button.dataset.only }, "#only"));
  }
  find("#legend").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const group = Number(button.dataset.group);
    showGroup(state.group === group ? -1 : group);
  });
  find("#level")?.addEventListener("input", (event) => showLevel(Number(event.target.value)));
  for (const button of all("[data-zoom]")) {
    button.addEventListener("click", () => (Number(button.dataset.zoom) ? map.zoom(Number(button.dataset.zoom)) : map.fit()));
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-picture]");
    if (!button) return;
    if (STATE && picks.take(button, event)) return;
    const among = button.closest("#gallery") ? state.found : [...button.closest("[role='group']").querySelectorAll("[data-picture]")].map((each) => Number(each.dataset.picture));
    panel.open(Number(button.dataset.picture), among);
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("a[href^='#']")) layOutCards();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select") || find("dialog[open]")) return;
    find("#query").focus();
    event.preventDefault();
  });

  const themeButton = find("#theme");
  const nameTheme = () => themeButton.setAttribute("aria-label", `Colours: ${theme.labels[theme.current]}`);
  themeButton.addEventListener("click", () => theme.turn());
  document.addEventListener("themechange", nameTheme);
  nameTheme();

  // ---- the start ----

  for (const strip of all("[data-numbers]")) {
    strip.append(...strip.dataset.numbers.split(" ").filter(Boolean).map((i) => pictureButton(Number(i))));
  }
  if (levels) {
    for (const [at, card] of all(".card").entries()) card.prepend(crumbs(levels.aboveOwn(pictures.groups[at])));
  }
  paintGroups(document);
  if (!STATE) update(); // else served.js shows what edits have made of it

  return { state, map, panel, update, showAllOf, showEdited };
})();
