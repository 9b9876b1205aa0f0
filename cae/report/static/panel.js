"use strict";
// One picture, large, with why it is where it is.

class Panel {
  constructor(dialog) {
    this.dialog = dialog;
    this.list = [];
    this.at = 0;
    for (const button of dialog.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => this.step(Number(button.dataset.step)));
    }
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside it
    });
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        this.step(step);
        event.preventDefault();
      }
    });
  }

  /** Open on a picture; back and forth lead through `list`. */
  open(i, list) {
    this.list = list;
    this.at = list.indexOf(i);
    this.show(i);
    if (!this.dialog.open) this.dialog.showModal();
  }

  step(by) {
    const next = this.at + by;
    if (next < 0 || next >= this.list.length) return;
    this.at = next;
    this.show(this.list[next]);
  }

  show(i) {
    const find = (selector) => this.dialog.querySelector(selector);
    const group = pictures.groups[pictures.group[i]];
    find("#panel-title").textContent = pictures.file(i);
    find(".panel-path").replaceChildren(pictures.path[i]);
    find(".panel-picture").replaceChildren(pictures.missing(i) ? thumbnail(i) : this.original(i));
    const runnerUp = pictures.groups[pictures.runnerUp[i]];
    const sure = pictures.confidence[i];
    const rows = [
      ["Group", element("a", { href: `#group-${pictures.group[i]}`, "data-group": pictures.group[i] }, group.name)],
      ["Confidence", `${sure}%: ${sure < 10 ? "nearly as close to the next group" : sure < 35 ? "closer than to any other group" : "far closer than to any other group"}`],
    ];
    if (pictures.outlier(i)) rows.splice(1, 0, ["Fit", element("span", { class: "tag" }, "fits no group"), " It is unlike all that was clustered."]);
    if (pictures.movedFrom(i)) rows.push(["Moved from", pictures.movedFrom(i)]);
    if (runnerUp) rows.push(["Next best", element("a", { href: `#group-${pictures.runnerUp[i]}`, "data-group": pictures.runnerUp[i] }, runnerUp.name)]);
    if (pictures.nouns(i).length) {
      rows.push(["Nouns", element("ul", { class: "chips" }, ...pictures.nouns(i).map((noun) => element("li", {}, noun)))]);
    }
    if (pictures.caption(i)) rows.push(["Caption", pictures.caption(i)]);
    rows.push(["Weights", this.weights(i)]);
    find(".why").replaceChildren(
      ...rows.map(([term, ...value]) => element("div", {}, element("dt", {}, term), element("dd", {}, ...value))),
    );
    paintGroups(this.dialog);
    for (const link of this.dialog.querySelectorAll(".why a")) link.addEventListener("click", () => this.dialog.close());
    for (const button of this.dialog.querySelectorAll("[data-step]")) {
      const next = this.at + Number(button.dataset.step);
      button.disabled = next < 0 || next >= this.list.length;
    }
  }

  /** The original where a browser can show it, linked; else the thumbnail. */
  original(i) {
    const box = element("span", { class: "stand-in" }, thumbnail(i, { lazy: false }));
    const image = element("img", { alt: spoken(i) });
    const [...urls] = pictures.urls(i);
    image.addEventListener("load", () => box.replaceWith(element("a", { href: image.src, target: "_blank", rel: "noopener" }, image)));
    image.addEventListener("error", () => next());
    const next = () => {
      if (urls.length) image.src = urls.shift();
    };
    next();
    return box;
  }

  weights(i) {
    const names = { image: "picture", noun: "nouns", caption: "captions" };
    const shares = [...pictures.weights(i)];
    return element(
      "ul",
      { class: "shares" },
      ...Object.entries(names).map(([modality, name], m) => {
        const bar = element("i", { class: modality });
        bar.style.width = `${shares[m]}%`;
        return element("li", {}, element("span", {}, bar), `${name} ${shares[m]}%`);
      }),
    );
  }
}
