// The canvas of the embedding atlas: draws points, reports clicks and keys, plays what the kernel sends. The kernel decides everything else.
const MARGIN = 14, HIT = 12; // CSS pixels
const KEYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
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

function mark(g, shape, x, y, r) {
  g.beginPath();
  if (shape === "circle") g.arc(x, y, r, 0, 2 * Math.PI);
  else OUTLINES[shape].forEach(([dx, dy], i) => (i ? g.lineTo(x + r * dx, y + r * dy) : g.moveTo(x + r * dx, y + r * dy)));
  g.closePath();
}

function render({ model, el }) {
  el.classList.add("asd-atlas-map");
  const add = (tag, cls, facts) => el.appendChild(Object.assign(document.createElement(tag), { className: cls }, facts));
  const canvas = add("canvas", "asd-atlas-canvas", { tabIndex: 0 });
  const audio = add("audio", "asd-atlas-player", { controls: true, preload: "auto" });
  const said = add("p", "asd-atlas-said", {});
  canvas.style.cssText = "display:block;border:1px solid #bbb";
  audio.style.cssText = "display:block;width:100%;max-width:520px;height:2.5rem;margin-top:.4rem";
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "map of clips");
  said.setAttribute("aria-live", "polite");
  el.dataset.lmSuppressShortcuts = "true"; // else Lab takes the arrows to move between cells
  let places = []; // [x, y] in CSS pixels

  function draw() {
    const side = Math.max(240, Math.min(el.clientWidth || 480, 520)), dpr = window.devicePixelRatio || 1;
    canvas.style.width = canvas.style.height = `${side}px`;
    if (canvas.width !== Math.round(side * dpr)) canvas.width = canvas.height = Math.round(side * dpr);
    const g = canvas.getContext("2d"), xy = new Float32Array(bytes(model.get("xy"))), codes = new Uint8Array(bytes(model.get("codes")));
    const colors = model.get("colors"), shapes = model.get("shapes"), chosen = model.get("chosen"), n = xy.length / 2;
    g.setTransform(dpr, 0, 0, dpr, 0, 0);
    g.fillStyle = "#fff";
    g.fillRect(0, 0, side, side);
    const r = n > 800 ? 3 : n > 300 ? 4 : 5;
    places = Array.from({ length: n }, (_, i) => [MARGIN + xy[2 * i] * (side - 2 * MARGIN), MARGIN + (1 - xy[2 * i + 1]) * (side - 2 * MARGIN)]);
    for (const test of [0, 1])
      for (let i = 0; i < n; i++) {
        if (codes[3 * i + 2] !== test) continue;
        mark(g, shapes[codes[3 * i + 1]], ...places[i], test ? r : 0.8 * r);
        g.strokeStyle = g.fillStyle = colors[codes[3 * i]];
        if (test) g.fill();
        else g.stroke();
      }
    const ring = (i, radius, width, dash) => {
      g.beginPath();
      g.arc(...places[i], radius, 0, 2 * Math.PI);
      g.lineWidth = width;
      g.setLineDash(dash);
      g.strokeStyle = "#000";
      g.stroke();
      g.setLineDash([]);
      g.lineWidth = 1;
    };
    for (const i of model.get("near")) if (i < n) ring(i, 2 * r, 1.2, [3, 2]);
    if (chosen >= 0 && chosen < n) ring(chosen, 2.4 * r, 2.5, []);
    el.dataset.drawn = String(chosen);
  }

  function play() {
    if (!audio.src) return;
    audio.currentTime = 0;
    audio.play().catch(() => {}); // a browser may want a gesture first: the player is there for it
  }

  canvas.addEventListener("pointerdown", (event) => {
    const box = canvas.getBoundingClientRect(), at = [event.clientX - box.left, event.clientY - box.top];
    let best = -1, least = HIT;
    places.forEach(([x, y], i) => {
      const away = Math.hypot(x - at[0], y - at[1]);
      if (away < least) [best, least] = [i, away];
    });
    if (best >= 0) model.send({ kind: "pick", number: best });
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (KEYS[event.key]) model.send({ kind: "step", right: KEYS[event.key][0], up: KEYS[event.key][1] });
    else if (event.key === "Enter" || event.key === " ") play();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  function sound() {
    const source = model.get("sound");
    if (source) audio.src = source;
    else audio.removeAttribute("src");
    audio.setAttribute("aria-label", model.get("sound_name") || "no clip is chosen");
  }
  const tell = () => (said.textContent = model.get("said"));
  const name = () => canvas.setAttribute("aria-label", model.get("name"));
  for (const trait of ["xy", "codes", "colors", "shapes", "chosen", "near"]) model.on(`change:${trait}`, () => requestAnimationFrame(draw));
  model.on("change:sound", sound);
  model.on("msg:custom", (message) => message.kind === "play" && play());
  model.on("change:said", tell);
  model.on("change:name", name);
  tell(), name(), sound();
  const seen = new ResizeObserver(draw);
  seen.observe(el);
  return () => seen.disconnect();
}

export default { render };
