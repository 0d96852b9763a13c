// An SVG in two layers of the same size: the lower is sent rarely, the upper contains the marks that move with every
// tick. Reports clicks and the pointer in the drawing's units, and shows the kernel's answer as a tooltip.
export default { render({ model, el }) {
  el.classList.add("asd-drawing");
  const add = (cls) => el.appendChild(Object.assign(document.createElement("div"), { className: cls }));
  const still = add("asd-drawing-still"), live = add("asd-drawing-live"), tip = add("asd-map-tip");
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  for (const [name, layer] of [["still", still], ["live", live]]) {
    const show = () => { layer.innerHTML = model.get(name); };
    model.on(`change:${name}`, show);
    show();
  }
  const where = (event) => {
    const drawn = still.querySelector("svg"), frame = drawn.getBoundingClientRect(), size = drawn.viewBox.baseVal;
    return { x: ((event.clientX - frame.left) / frame.width) * size.width, y: ((event.clientY - frame.top) / frame.height) * size.height };
  };
  let pending = null, last = null; // one request at a time: event of the pending request, last event
  const ask = () => {
    pending = last;
    if (last) model.send({ kind: "hover", ...where(last) });
  };
  el.addEventListener("click", (event) => model.send({ kind: "click", ...where(event) }));
  el.addEventListener("pointermove", (event) => {
    last = event;
    if (!pending) ask();
  });
  el.addEventListener("pointerleave", () => { tip.hidden = true; last = null; });
  model.on("msg:custom", ({ text }) => {
    const moved = pending !== last;
    pending = null;
    tip.hidden = !last || !text;
    if (moved) ask();
    if (tip.hidden) return;
    const frame = el.getBoundingClientRect(), x = last.clientX - frame.left;
    tip.textContent = text;
    tip.style.left = `${Math.max(0, Math.min(x + 14, frame.width - tip.offsetWidth))}px`;
    tip.style.top = `${last.clientY - frame.top + 16}px`;
  });
} };
