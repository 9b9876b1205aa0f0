"use strict";
// The start of what only a page that `cae open` serves can do. From disk, what it needs stays hidden.

if (STATE) {
  for (const each of all("[data-served]")) each.hidden = false;
  document.documentElement.classList.add("served");
  find("#exports").textContent = STATE.exports;
  listenToEdits();
  listenToSeeking();
  take.listen();
  lasso.listen();
  for (const dialog of all(".form-dialog")) {
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  }
  document.addEventListener("pickschange", showPicks);
  document.addEventListener("edited", ({ detail }) => {
    ownGroups = pictures.groups;
    showHistory(detail);
    showChosenGroups();
    listGroups();
  });
  page.showEdited(STATE);
  document.dispatchEvent(new CustomEvent("edited", { detail: STATE }));
  say("All changes are saved as you make them.");
}
