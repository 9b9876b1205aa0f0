"use strict";
// Choosing pictures on the map: by a line drawn around their dots, or with the space bar. Only where the page is served.

const lasso = {
  points: null, // of the line that is being drawn, in CSS pixels of the map

  listen() {
    const box = find(".map");
    const { canvas } = page.map;
    const here = (event) => {
      const { left, top } = canvas.getBoundingClientRect();
      return [event.clientX - left, event.clientY - top];
    };
    // Before the map, which would be moved.
    const first = (type, act) => box.addEventListener(type, act, { capture: true });
    first("pointerdown", (event) => {
      if (!this.on || event.target !== canvas) return;
      event.stopPropagation();
      canvas.setPointerCapture(event.pointerId);
      page.map.point(-1);
      this.points = [here(event)];
    });
    first("pointermove", (event) => {
      if (!this.points) return;
      event.stopPropagation();
      this.points.push(here(event));
      find("#lasso-line").setAttribute("points", this.points.join(" "));
    });
    for (const type of ["pointerup", "pointercancel"]) {
      first(type, (event) => {
        if (!this.points) return;
        event.stopPropagation();
        if (type === "pointerup") this.choose(this.points);
        this.points = null;
        find("#lasso-line").setAttribute("points", "");
      });
    }
    find("#lasso").addEventListener("click", () => this.turn(!this.on));
    canvas.addEventListener("keydown", (event) => {
      if (event.key !== " " || page.map.current < 0) return;
      event.preventDefault();
      picks.set(page.map.current, !picks.has(page.map.current));
      find("#map-said").textContent = `${spoken(page.map.current)}, ${picks.has(page.map.current) ? "chosen" : "not chosen"}`;
    });
  },

  get on() {
    return find("#lasso").getAttribute("aria-pressed") === "true";
  },

  turn(on) {
    find("#lasso").setAttribute("aria-pressed", on);
    page.map.canvas.classList.toggle("lassoing", on);
  },

  /** Choose the shown pictures whose dots lie inside a line, closed from its end to its beginning. */
  choose(points) {
    const { map } = page;
    const [left, right] = [Math.min, Math.max].map((most) => most(...points.map(([x]) => x)));
    const [top, bottom] = [Math.min, Math.max].map((most) => most(...points.map(([, y]) => y)));
    const found = [];
    for (let i = 0; i < pictures.count; i++) {
      if (map.shown && !map.shown[i]) continue;
      const [x, y] = map.at(i);
      if (x >= left && x <= right && y >= top && y <= bottom && isInside(x, y, points)) found.push(i);
    }
    picks.add(found);
    say(`${count(found.length, "picture")} inside the line.`);
  },
};

/** Whether a point lies inside a polygon: a line from it to one side crosses an odd number of edges. */
function isInside(x, y, points) {
  let inside = false;
  for (let a = 0, b = points.length - 1; a < points.length; b = a++) {
    const [ax, ay] = points[a];
    const [bx, by] = points[b];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}
