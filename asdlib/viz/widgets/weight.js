// A weight from 0 to 1 as a native slider and number box, both labeled and linked.
export default { render({ model, el }) {
  const label = model.get("label"), box = document.createElement("div"), words = document.createElement("span"), note = document.createElement("div");
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  box.style.cssText = "display:flex;flex-wrap:wrap;gap:8px;align-items:center;font:13px system-ui,sans-serif;color:inherit";
  words.textContent = label;
  words.setAttribute("aria-hidden", "true");
  words.style.cssText = "width:130px";
  note.setAttribute("role", "alert");
  note.style.cssText = "font:13px system-ui,sans-serif;min-height:0";
  const make = (type, name, width) => {
    const input = document.createElement("input");
    Object.assign(input, { type, min: 0, max: 1, step: model.get("step") });
    input.setAttribute("aria-label", name);
    input.dataset.lmSuppressShortcuts = "true";  // on the focused element itself, otherwise JupyterLab captures the arrow keys to move between cells
    input.style.cssText = `width:${width}px;height:24px;font:inherit`;
    return input;
  };
  const slider = make("range", label, 260), number = make("number", `${label}, as a number`, 70);
  slider.style.maxWidth = "60vw";
  const refuse = (text) => {
    note.textContent = text;
    number.style.outline = text ? "2px solid #d55e00" : "";
    number.setAttribute("aria-invalid", String(Boolean(text)));
  };
  const show = () => {
    const value = model.get("value");
    slider.value = value;
    if (document.activeElement !== number || Number(number.value) !== value) number.value = Math.round(value * 1e6) / 1e6;
  };
  const send = (input) => () => {
    const value = input.valueAsNumber, fits = value >= 0 && value <= 1;
    refuse(fits || Number.isNaN(value) ? "" : `${value} is not valid: ${label} must be between 0 and 1; the value remains ${model.get("value")}`);
    if (!fits) return;
    (input === slider ? number : slider).value = value;
    model.set("value", value);
    model.save_changes();
  };
  const able = () => { slider.disabled = number.disabled = model.get("disabled"); };
  slider.addEventListener("input", send(slider));
  number.addEventListener("input", send(number));
  number.addEventListener("blur", show);
  model.on("change:value", () => (refuse(""), show()));
  model.on("change:disabled", able);
  show(), able();
  box.append(words, slider, number);
  el.append(box, note);
} };
