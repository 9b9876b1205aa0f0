"use strict";
// What the page asks of `cae open`, one thing after the other, and what it says of it.

/** Say what is being done or was done, where people and screen readers find it. `kind`: busy, done or failed. */
function say(text, kind = "done") {
  const said = find("dialog[open] .said") ?? find("#said");
  said.textContent = text;
  said.dataset.kind = kind;
}

const server = (() => {
  let revision = STATE?.revision;
  let unmatched = STATE?.unmatched.length; // edits that could not be applied
  let waiting = Promise.resolve(); // for what was asked before
  let unsaved = 0;
  let outdated = 0; // how often a change was refused because the result was another one by then

  class Refused extends Error {
    constructor(message, status) {
      super(message);
      this.status = status;
    }
  }

  /** Ask for something; returns the answer, or throws with what there is to say. */
  async function ask(path, body) {
    const request = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
    const answer = await fetch(path, request).catch(() => {
      throw new Refused("`cae open` has ended: start it again, and use the address that it prints", 0);
    });
    if (answer.status === 403) throw new Refused("this tab is of an earlier `cae open`: use the address that the last one printed", 403);
    const said = await answer.json().catch(() => ({ error: `the server failed (${answer.status}): its terminal says why` }));
    if (!answer.ok) throw new Refused(said.error, answer.status);
    return said;
  }

  /** Have the browser ask before the page is left while something is not saved. */
  function holdBack(event) {
    if (unsaved || find(".rename")) event.preventDefault();
  }

  /** Take in a state of the result; the page is loaded again if that is another result by now. */
  function take(state) {
    if (state.fit !== STATE.fit) {
      removeEventListener("beforeunload", holdBack); // what is not saved was meant for another result
      return location.reload();
    }
    revision = state.revision;
    unmatched = state.unmatched.length;
    const goBack = keepPlace();
    page.showEdited(state);
    document.dispatchEvent(new CustomEvent("edited", { detail: state }));
    goBack();
  }

  async function refresh() {
    const before = revision;
    const state = await ask("api/state");
    // What an edit that was saved meanwhile has answered is newer.
    if (revision === before && state.revision !== revision) take(state);
  }

  async function makeEdit(edit, fields, done) {
    try {
      const state = await ask("api/edits", { edit, revision, ...fields });
      const applied = state.unmatched.length <= unmatched;
      take(state);
      if (applied) say(done);
      else say(`Saved, but not applied: ${state.unmatched.at(-1)}.`, "failed");
      return true;
    } catch (error) {
      say(`Not saved: ${error.message}`, "failed");
      if (error.status !== 409) return false;
      outdated += 1;
      await refresh().then(() => say(`Not saved: ${error.message}. The page shows that now; try again.`, "failed"), () => {});
      return false;
    }
  }

  /** Change the result; returns whether it was saved. Changes are made one after the other, in the order of the clicks. */
  function edit(kind, fields, done) {
    const before = outdated;
    unsaved += 1;
    say("Saving …", "busy");
    // What was clicked before such a refusal was meant for what the page showed then.
    waiting = waiting.then(() => before === outdated && makeEdit(kind, fields, done)).finally(() => (unsaved -= 1));
    return waiting;
  }

  if (STATE) {
    addEventListener("focus", () => unsaved || refresh().catch((error) => say(error.message, "failed")));
    addEventListener("beforeunload", holdBack);
  }

  return { ask, edit };
})();
