// A map of clips: draws, zooms, pans, and reports clicks, lassos and keys; the kernel does everything else.
const MARGIN = 14, REACH = 12, MAX_WIDTH = 520, MAX_ZOOM = 400; // CSS pixels; REACH: of a click around a point
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const KEYS = { Enter: "play", " ": "play", b: "switch", s: "mark", Escape: "clear" };
const TEST = 1, FAINT = 2, BEYOND = 4; // bits of a point's third code
const bytes = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
const star = Array.from({ length: 10 }, (_, i) => [Math.sin((i * Math.PI) / 5), -Math.cos((i * Math.PI) / 5)].map((v) => v * (i % 2 ? 0.5 : 1.2)));
const OUTLINES = {
  square: [[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]],
  triangle: [[0, -1.1], [1, 0.8], [-1, 0.8]],
  down: [[0, 1.1], [1, -0.8], [-1, -0.8]],
  diamond: [[0, -1.15], [1.15, 0], [0, 1.15], [-1.15, 0]],
  plus: [[-0.35, -1], [0.35, -1], [0.35, -0.35], [1, -0.35], [1, 0.35], [0.35, 0.35], [0.35, 1], [-0.35, 1], [-0.35, 0.35], [-1, 0.35], [-1, -0.35], [-0.35, -0.35]],
  cross: [[-1, -0.55], [-0.55, -1], [0, -0.45], [0.55, -1], [1, -0.55], [0.45, 0], [1, 0.55], [0.55, 1], [0, 0.45], [-0.55, 1], [-1, 0.55], [-0.45, 0]],
  star,
};

function outline(g, shape, x, y, r) {
  g.beginPath();
  if (shape === "circle") g.arc(x, y, r, 0, 2 * Math.PI);
  else OUTLINES[shape].forEach(([dx, dy], i) => (i ? g.lineTo(x + r * dx, y + r * dy) : g.moveTo(x + r * dx, y + r * dy)));
  g.closePath();
}

function inside(polygon, x, y) {
  let found = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [ax, ay] = polygon[i], [bx, by] = polygon[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) found = !found;
  }
  return found;
}

function render({ model, el }) {
  el.classList.add("asd-map-panel");
  const add = (parent, tag, cls, facts = {}) => parent.appendChild(Object.assign(document.createElement(tag), { className: cls }, facts));
  const bar = add(el, "div", "asd-map-bar"), box = add(el, "div", "asd-map-box");
  const canvas = add(box, "canvas", "asd-map-canvas", { tabIndex: 0 }), tip = add(box, "div", "asd-map-tip", { hidden: true });
  tip.setAttribute("role", "tooltip");
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "map of clips");
  const button = (label, name, act) => add(bar, "button", "asd-map-button", { textContent: label, title: name, onclick: act });
  const lassoing = button("Lasso", "Drag a line around points to select them; without this button: Shift and drag", () => press(!pressed));
  button("+", "Zoom in", () => zoom(1.5)).setAttribute("aria-label", "Zoom in");
  button("−", "Zoom out", () => zoom(1 / 1.5)).setAttribute("aria-label", "Zoom out");
  button("Whole map", "Back to the whole map (0)", reset);
  button("Clear selection", "Select nothing (Escape)", () => model.send({ kind: "clear" }));
  for (const one of [canvas, ...bar.children]) one.dataset.lmSuppressShortcuts = "true"; // otherwise JupyterLab captures the arrow keys
  let side = 0, n = 0, base = new Float32Array(), at = new Float32Array(), codes = new Uint8Array(), view = [1, 0, 0];
  let pressed = false, drag = null, line = null, hovered = -1, pending = false, sprites = [], due = 0;
  press(false);

  function press(on) {
    pressed = on;
    lassoing.setAttribute("aria-pressed", String(on));
    canvas.style.cursor = on ? "crosshair" : "";
  }

  function load() {
    const xy = new Float32Array(bytes(model.get("xy")));
    codes = new Uint8Array(bytes(model.get("codes")));
    [n, base, at] = [Math.min(xy.length / 2, codes.length / 3), xy, new Float32Array(xy.length)];
    sprites = [];
    hide();
    refresh();
  }

  function sprite(code, shape, bits, r, ink) {
    const key = (bits * 16 + shape) * 256 + code;
    if (!sprites[key]) {
      const dpr = window.devicePixelRatio || 1, half = Math.ceil(1.4 * r + 2), own = document.createElement("canvas"), g = own.getContext("2d");
      own.width = own.height = 2 * half * dpr;
      g.scale(dpr, dpr);
      const name = model.get("colors")[code], color = name === "currentColor" ? ink : name;
      outline(g, model.get("shapes")[shape], half, half, bits & TEST ? r : 0.85 * r);
      if (bits & FAINT) {
        [g.globalAlpha, g.strokeStyle, g.lineWidth] = [0.22, ink, 0.7];
        g.stroke();
      } else {
        // a thin outline in the text color keeps both ends of the scale visible on light and dark backgrounds
        [g.globalAlpha, g.strokeStyle, g.lineWidth] = [0.5, ink, bits & TEST ? 1.2 : 2.6];
        g.stroke();
        [g.globalAlpha, g.strokeStyle, g.fillStyle, g.lineWidth] = [1, color, color, 1.6];
        if (bits & TEST) g.fill();
        else g.stroke();
        if (bits & BEYOND) {
          g.beginPath();
          g.arc(half, half, 0.4 * r, 0, 2 * Math.PI);
          [g.fillStyle, g.strokeStyle, g.lineWidth] = ["#fff", "#000", 0.8];
          g.fill(), g.stroke();
        }
      }
      sprites[key] = [own, half];
    }
    return sprites[key];
  }

  function draw() {
    due = 0;
    const dpr = window.devicePixelRatio || 1, wide = Math.max(220, Math.min((el.clientWidth || 480) - 4, MAX_WIDTH));
    if (wide !== side || canvas.width !== Math.round(wide * dpr)) {
      side = wide;
      canvas.style.width = canvas.style.height = `${side}px`;
      canvas.width = canvas.height = Math.round(side * dpr);
    }
    const g = canvas.getContext("2d"), ink = getComputedStyle(canvas).color, room = side - 2 * MARGIN, [k, ox, oy] = view;
    g.setTransform(dpr, 0, 0, dpr, 0, 0);
    g.clearRect(0, 0, side, side);
    const r = (n > 4000 ? 2 : n > 800 ? 3 : n > 300 ? 4 : 5) * Math.min(2, k ** 0.25);
    if (sprites.r !== r || sprites.ink !== ink) sprites = Object.assign([], { r, ink });
    for (let i = 0; i < n; i++) {
      at[2 * i] = k * (MARGIN + base[2 * i] * room) + ox;
      at[2 * i + 1] = k * (MARGIN + (1 - base[2 * i + 1]) * room) + oy;
    }
    for (const layer of [FAINT, 0, TEST])
      for (let i = 0; i < n; i++) {
        const bits = codes[3 * i + 2], x = at[2 * i], y = at[2 * i + 1];
        if ((bits & FAINT ? FAINT : bits & TEST) !== layer || x < -9 || y < -9 || x > side + 9 || y > side + 9) continue;
        const [own, half] = sprite(codes[3 * i], codes[3 * i + 1], bits, r, ink);
        g.drawImage(own, x - half, y - half, 2 * half, 2 * half);
      }
    const ring = (i, radius, width, dash = []) => {
      if (!(i >= 0 && i < n)) return;
      g.beginPath();
      g.arc(at[2 * i], at[2 * i + 1], radius, 0, 2 * Math.PI);
      [g.lineWidth, g.strokeStyle] = [width, ink];
      g.setLineDash(dash);
      g.stroke();
    };
    for (const i of model.get("selected")) ring(i, 1.6 * r, 1.4);
    for (const i of model.get("near")) ring(i, 2 * r, 1.2, [3, 2]);
    ring(model.get("chosen"), 2.4 * r, 2.5);
    g.setLineDash([]);
    if (line) {
      g.beginPath();
      line.forEach(([x, y], i) => (i ? g.lineTo(x, y) : g.moveTo(x, y)));
      [g.lineWidth, g.strokeStyle] = [1.5, ink];
      g.stroke();
    }
    Object.assign(el.dataset, { drawn: model.get("chosen"), zoom: k.toFixed(3), points: n });
  }
  const refresh = () => (due = due || requestAnimationFrame(draw));

  function zoom(by, x = side / 2, y = side / 2) {
    const k = Math.min(Math.max(view[0] * by, 1), MAX_ZOOM), share = k / view[0];
    view = k === 1 ? [1, 0, 0] : [k, x - share * (x - view[1]), y - share * (y - view[2])];
    hide(), refresh();
  }
  function reset() {
    view = [1, 0, 0];
    hide(), refresh();
  }

  const where = (event) => {
    const frame = canvas.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  };
  function nearest([x, y]) {
    let best = -1, least = REACH;
    for (let i = 0; i < n; i++) {
      const away = Math.hypot(at[2 * i] - x, at[2 * i + 1] - y);
      if (away < least && !(codes[3 * i + 2] & FAINT)) [best, least] = [i, away];
    }
    return best;
  }
  function hide() {
    [hovered, tip.hidden] = [-1, true];
  }
  function hover(number) {
    if (number === hovered) return;
    hide();
    hovered = number;
    if (number >= 0 && !pending) model.send({ kind: "hover", number }), (pending = true); // one request at a time
  }
  function showTip(message) {
    pending = false;
    if (message.number !== hovered) return hovered >= 0 && (model.send({ kind: "hover", number: hovered }), (pending = true));
    tip.textContent = message.text;
    tip.hidden = false;
    const x = at[2 * hovered], y = at[2 * hovered + 1];
    tip.style.left = `${Math.max(0, Math.min(x + 12, side - tip.offsetWidth))}px`;
    tip.style.top = `${y + 14 + tip.offsetHeight < side ? y + 14 : Math.max(0, y - 14 - tip.offsetHeight)}px`;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    drag = { from: where(event), view: [...view], moved: false };
    if (pressed || event.shiftKey) line = [drag.from];
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = where(event);
    if (!drag) return hover(nearest([x, y]));
    drag.moved = drag.moved || Math.hypot(x - drag.from[0], y - drag.from[1]) > 4;
    if (line) line.push([x, y]);
    else if (drag.moved) view = [drag.view[0], drag.view[1] + x - drag.from[0], drag.view[2] + y - drag.from[1]];
    if (drag.moved) hide(), refresh();
  });
  canvas.addEventListener("pointerup", (event) => {
    const ended = drag, around = line, more = event.ctrlKey || event.metaKey;
    drag = line = null;
    if (!ended) return;
    if (!ended.moved) {
      const number = nearest(ended.from);
      if (number >= 0) model.send({ kind: more ? "mark" : "pick", number });
    } else if (around) {
      const numbers = [];
      for (let i = 0; i < n; i++) if (!(codes[3 * i + 2] & FAINT) && inside(around, at[2 * i], at[2 * i + 1])) numbers.push(i);
      model.send({ kind: "lasso", numbers, more });
      refresh();
    }
  });
  canvas.addEventListener("pointercancel", () => ((drag = line = null), refresh()));
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // without focus, the wheel scrolls the notebook
    event.preventDefault();
    zoom(Math.exp(-Math.max(-60, Math.min(event.deltaY, 60)) / 200), ...where(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (ARROWS[event.key]) model.send({ kind: "step", right: ARROWS[event.key][0], up: ARROWS[event.key][1] });
    else if (KEYS[event.key]) model.send({ kind: KEYS[event.key] });
    else if (event.key === "+" || event.key === "-") {
      const i = model.get("chosen");
      zoom(event.key === "+" ? 1.5 : 1 / 1.5, ...(i >= 0 && i < n ? [at[2 * i], at[2 * i + 1]] : []));
    } else if (event.key === "0") reset();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  function follow() { // bring the chosen point into view
    const i = model.get("chosen");
    if (i >= 0 && i < n && view[0] > 1) {
      const out = (v) => (v < MARGIN || v > side - MARGIN ? side / 2 - v : 0);
      view = [view[0], view[1] + out(at[2 * i]), view[2] + out(at[2 * i + 1])];
    }
    refresh();
  }

  const name = () => canvas.setAttribute("aria-label", model.get("name"));
  for (const trait of ["codes", "colors"]) model.on(`change:${trait}`, load);
  model.on("change:xy", () => ((view = [1, 0, 0]), load()));
  for (const trait of ["near", "selected"]) model.on(`change:${trait}`, refresh);
  model.on("change:chosen", follow);
  model.on("change:name", name);
  model.on("msg:custom", (message) => message.kind === "tip" && showTip(message));
  name(), load();
  const size = new ResizeObserver(refresh), theme = new MutationObserver(refresh);
  size.observe(el);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light"] });
  return () => (size.disconnect(), theme.disconnect());
}

export default { render };
