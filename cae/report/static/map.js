"use strict";
// The map: every picture a dot on a canvas. The dots are set pixel by pixel, in a few milliseconds for 100,000; where no
// graphics card helps, a call of the canvas for each would take longer than a frame for 10,000.

const MAX_RADIUS = 9;
const MAX_RINGS = 5000; // of chosen pictures: more take too long to draw

class PictureMap {
  /** `open(i)` is called for a dot that is chosen, `said(i)` for one that the keyboard has reached. */
  constructor(canvas, hover, { open, said }) {
    Object.assign(this, { canvas, hover, open, said });
    this.context = canvas.getContext("2d");
    this.current = -1;
    this.chosen = []; // numbers of pictures with a ring
    this.shown = null; // Uint8Array: 1 for pictures that the search and the group leave; null for all
    this.view = { scale: 1, x: 0, y: 0 };
    this.index = this.buildIndex();
    this.labels = this.labelPlaces();
    new ResizeObserver(() => this.resize()).observe(canvas);
    document.addEventListener("themechange", () => this.recolour());
    this.recolour();
    this.listen();
  }

  // ---- geometry: positions are 0 … 65535, `view` maps them to CSS pixels ----

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || (width === this.width && height === this.height)) return;
    Object.assign(this, { width, height, ratio: Math.min(devicePixelRatio || 1, 2) });
    this.canvas.width = width * this.ratio;
    this.canvas.height = height * this.ratio;
    // With a rim, so that a dot that is half out of sight needs no care.
    this.rim = 2 * Math.ceil(MAX_RADIUS * this.ratio + 1);
    this.dots = new ImageData(this.canvas.width + 2 * this.rim, this.canvas.height + 2 * this.rim);
    this.fit();
  }

  fit() {
    const margin = 24;
    const scale = (Math.min(this.width, this.height) - 2 * margin) / 65535;
    this.fitted = scale;
    this.view = { scale, x: (this.width - 65535 * scale) / 2, y: (this.height - 65535 * scale) / 2 };
    this.draw();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.min(Math.max(this.view.scale * factor, this.fitted / 2), this.fitted * 200);
    const grown = scale / this.view.scale;
    this.view = { scale, x: x - (x - this.view.x) * grown, y: y - (y - this.view.y) * grown };
    this.draw();
  }

  pan(dx, dy) {
    this.view.x += dx;
    this.view.y += dy;
    this.draw();
  }

  at(i) {
    const { scale, x, y } = this.view;
    return [pictures.position[2 * i] * scale + x, pictures.position[2 * i + 1] * scale + y];
  }

  get radius() {
    const room = Math.min(this.width, this.height) / 7;
    const base = Math.min(Math.max(room / Math.sqrt(pictures.count), 1.4), 5);
    return Math.min(base * Math.sqrt(Math.max(this.view.scale / this.fitted, 1)), MAX_RADIUS);
  }

  // ---- a grid over the map, so that the nearest dot is found among few ----

  buildIndex() {
    const side = Math.max(Math.ceil(Math.sqrt(pictures.count / 4)), 1);
    const cell = 65536 / side;
    const cellOf = (i) => Math.floor(pictures.position[2 * i + 1] / cell) * side + Math.floor(pictures.position[2 * i] / cell);
    const start = new Uint32Array(side * side + 1);
    for (let i = 0; i < pictures.count; i++) start[cellOf(i) + 1]++;
    for (let c = 0; c < side * side; c++) start[c + 1] += start[c];
    const next = start.slice();
    const members = new Uint32Array(pictures.count);
    for (let i = 0; i < pictures.count; i++) members[next[cellOf(i)]++] = i;
    return { side, cell, start, members };
  }

  /** The shown picture nearest to a point, at most `reach` CSS pixels away; -1 for none. */
  nearest(x, y, reach) {
    const { side, cell, start, members } = this.index;
    const far = reach / this.view.scale;
    const px = (x - this.view.x) / this.view.scale;
    const py = (y - this.view.y) / this.view.scale;
    const clamp = (value) => Math.min(Math.max(Math.floor(value / cell), 0), side - 1);
    let best = -1;
    let least = far * far;
    for (let row = clamp(py - far); row <= clamp(py + far); row++) {
      for (let c = row * side + clamp(px - far), last = row * side + clamp(px + far); c <= last; c++) {
        for (let m = start[c]; m < start[c + 1]; m++) {
          const i = members[m];
          if (this.shown && !this.shown[i]) continue;
          const dx = pictures.position[2 * i] - px;
          const dy = pictures.position[2 * i + 1] - py;
          if (dx * dx + dy * dy <= least) {
            least = dx * dx + dy * dy;
            best = i;
          }
        }
      }
    }
    return best;
  }

  /** The nearest shown picture in a direction, within 45 degrees of it; -1 for none. */
  neighbour(i, dx, dy) {
    let best = -1;
    let least = Infinity;
    for (let j = 0; j < pictures.count; j++) {
      if (j === i || (this.shown && !this.shown[j])) continue;
      const x = pictures.position[2 * j] - pictures.position[2 * i];
      const y = pictures.position[2 * j + 1] - pictures.position[2 * i + 1];
      const along = x * dx + y * dy;
      const across = Math.abs(x * dy) + Math.abs(y * dx);
      if (along <= 0 || across > along) continue;
      const distance = along * along + 2 * across * across;
      if (distance < least) {
        least = distance;
        best = j;
      }
    }
    return best;
  }

  // ---- drawing ----

  labelPlaces() {
    const median = (values) => values.sort()[values.length >> 1];
    const members = pictures.groups.map(() => []);
    for (let i = 0; i < pictures.count; i++) members[pictures.group[i]].push(i);
    return members.map((own) => [0, 1].map((axis) => median(Uint16Array.from(own, (i) => pictures.position[2 * i + axis]))));
  }

  recolour() {
    const style = getComputedStyle(this.canvas);
    this.ink = style.color;
    this.paper = style.backgroundColor;
    const context = element("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    const pixel = (colour) => {
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      return new Uint32Array(context.getImageData(0, 0, 1, 1).data.buffer)[0];
    };
    this.pixels = {
      paper: pixel(this.paper),
      faint: pixel(theme.dark ? "#3a4147" : "#d5d9d6"),
      groups: Uint32Array.from(pictures.groups, ({ colour }, group) => pixel(groupColour(colour ?? group, theme.dark))),
    };
    this.draw();
  }

  /** Colours and labels for the groups that there are now. */
  regroup() {
    this.labels = this.labelPlaces();
    this.recolour();
  }

  show(shown) {
    this.shown = shown;
    this.draw();
  }

  draw() {
    this.stale = true;
    this.mark();
  }

  /** Draw again what lies over the dots. */
  mark() {
    if (this.waiting || !this.width) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paint();
    });
  }

  paint() {
    const { context, ratio, dots, rim } = this;
    if (this.stale) this.setDots();
    this.stale = false;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.putImageData(dots, -rim, -rim);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.paintLabels();
    if (this.chosen.length <= MAX_RINGS) this.paintRings(this.chosen, 1.5, 1.5);
    if (this.current >= 0) this.paintRings([this.current], 2, 4);
  }

  /** How much of each pixel in a square around a dot's centre the dot covers, 0 … 256. */
  stamp() {
    const radius = this.radius * this.ratio;
    const side = 2 * Math.ceil(radius + 1);
    const covers = Uint16Array.from({ length: side * side }, (_, at) => {
      const away = Math.hypot((at % side) + 0.5 - side / 2, Math.floor(at / side) + 0.5 - side / 2);
      return Math.round(256 * Math.min(Math.max(radius + 0.5 - away, 0), 1));
    });
    return { side, covers };
  }

  setDots() {
    const { ratio, view, shown, rim } = this;
    const { side, covers } = this.stamp();
    const { width, height } = this.dots;
    const pixels = new Uint32Array(this.dots.data.buffer);
    const { position, group, count } = pictures;
    const set = (wanted) => {
      for (let i = 0; i < count; i++) {
        if (shown && Boolean(shown[i]) !== wanted) continue;
        const left = Math.round((position[2 * i] * view.scale + view.x) * ratio - side / 2) + rim;
        const top = Math.round((position[2 * i + 1] * view.scale + view.y) * ratio - side / 2) + rim;
        if (left < 0 || top < 0 || left + side > width || top + side > height) continue;
        const colour = wanted ? this.pixels.groups[group[i]] : this.pixels.faint;
        for (let y = 0, at = 0; y < side; y++) {
          for (let to = (top + y) * width + left, end = to + side; to < end; to++, at++) {
            const share = covers[at];
            if (share === 256) pixels[to] = colour;
            else if (share) pixels[to] = blend(pixels[to], colour, share);
          }
        }
      }
    };
    pixels.fill(this.pixels.paper);
    if (shown) set(false);
    set(true);
  }

  paintLabels() {
    const { context, view } = this;
    context.font = "600 13px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.lineWidth = 4;
    const taken = [];
    this.labels.forEach(([px, py], group) => {
      const { name } = pictures.groups[group];
      const text = name.length > 28 ? `${name.slice(0, 27)}…` : name;
      const half = context.measureText(text).width / 2 + 4;
      // Above the middle by the height of a dot and half a line: a name does not hide a group that lies in one place.
      const y = py * view.scale + view.y - this.radius - 10;
      let x = px * view.scale + view.x;
      if (x < 0 || x > this.width) return;
      x = Math.min(Math.max(x, half), this.width - half);
      // Groups come by size: the larger one keeps its label.
      if (taken.some((box) => Math.abs(box.x - x) < box.half + half && Math.abs(box.y - y) < 18)) return;
      taken.push({ x, y, half });
      context.strokeStyle = this.paper;
      context.strokeText(text, x, y);
      context.fillStyle = this.ink;
      context.fillText(text, x, y);
    });
  }

  paintRings(numbers, width, gap) {
    const { context } = this;
    const radius = this.radius + gap;
    context.lineWidth = width;
    context.strokeStyle = this.ink;
    context.beginPath();
    for (const i of numbers) {
      const [x, y] = this.at(i);
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
    context.stroke();
  }

  // ---- pointer and keyboard ----

  /** Make a picture the current one, with its thumbnail beside the dot; -1 for none. */
  point(i) {
    if (i === this.current) return;
    this.current = i;
    this.canvas.style.cursor = i < 0 ? "grab" : "pointer";
    this.hover.hidden = i < 0;
    if (i >= 0) {
      this.hover.replaceChildren(
        element("span", { class: "frame" }, thumbnail(i, { lazy: false })),
        element("strong", {}, pictures.groups[pictures.group[i]].name),
        element("span", { class: "path" }, pictures.file(i)),
      );
      this.place();
    }
    this.mark();
  }

  place() {
    const [x, y] = this.at(this.current);
    const { offsetWidth: width, offsetHeight: height } = this.hover;
    const left = x + 16 + width > this.width ? x - 16 - width : x + 16;
    const top = Math.min(Math.max(y - height / 2, 4), this.height - height - 4);
    this.hover.style.transform = `translate(${Math.max(left, 4)}px, ${Math.max(top, 4)}px)`;
  }

  listen() {
    const { canvas } = this;
    const pointers = new Map();
    let moved = 0;
    const here = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, here(event));
      moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = here(event);
      const before = pointers.get(event.pointerId);
      if (!before) {
        this.point(this.nearest(x, y, 24));
        return;
      }
      moved += Math.hypot(x - before[0], y - before[1]);
      if (pointers.size === 2) {
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const spread = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
        this.zoom(spread([x, y]) / Math.max(spread(before), 1), (x + other[0]) / 2, (y + other[1]) / 2);
      }
      if (moved > 4) {
        this.point(-1);
        this.pan((x - before[0]) / pointers.size, (y - before[1]) / pointers.size);
      }
      pointers.set(event.pointerId, [x, y]);
    });
    canvas.addEventListener("pointerup", (event) => {
      pointers.delete(event.pointerId);
      if (moved > 4) return;
      const i = this.nearest(...here(event), 24);
      // A finger cannot hover: the first tap shows the thumbnail, the second opens it.
      if (event.pointerType === "touch" && i !== this.current) this.point(i);
      else if (i >= 0) this.open(i);
    });
    canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => this.point(-1));
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.point(-1);
        this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...here(event));
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      if (!this.press(event.key)) return;
      event.preventDefault();
    });
  }

  press(key) {
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (key in directions) {
      const from = this.current;
      const to = from < 0 ? this.nearest(this.width / 2, this.height / 2, Infinity) : this.neighbour(from, ...directions[key]);
      if (to < 0) return true;
      this.point(to);
      this.keepInSight();
      this.said(to);
    } else if (key === "Enter" && this.current >= 0) this.open(this.current);
    else if (key === "+" || key === "=") this.zoom(1.6, ...this.centre());
    else if (key === "-") this.zoom(0.625, ...this.centre());
    else if (key === "0") this.fit();
    else if (key === "Escape") this.point(-1);
    else return false;
    if (this.current >= 0) this.place();
    return true;
  }

  centre() {
    return this.current < 0 ? [] : this.at(this.current);
  }

  keepInSight() {
    const [x, y] = this.at(this.current);
    if (x > 20 && y > 20 && x < this.width - 20 && y < this.height - 20) return;
    this.pan(this.width / 2 - x, this.height / 2 - y);
    this.place();
  }
}

/** A pixel under `share` of 256 parts of another; both opaque. Red and blue are mixed in one go. */
function blend(under, over, share) {
  const redBlue = (((under & 0xff00ff) * (256 - share) + (over & 0xff00ff) * share) >>> 8) & 0xff00ff;
  const green = (((under & 0xff00) * (256 - share) + (over & 0xff00) * share) >>> 8) & 0xff00;
  return 0xff000000 | redBlue | green;
}
