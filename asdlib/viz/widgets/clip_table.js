// A table of clips: each row has a button that selects and plays its clip; the table can be saved as CSV.
export default { render({ model, el }) {
  const add = (parent, tag, facts = {}) => parent.appendChild(Object.assign(document.createElement(tag), facts));
  const show = () => {
    const focused = [...el.querySelectorAll("button")].indexOf(document.activeElement);
    el.replaceChildren();
    const rows = model.get("rows"), caption = model.get("caption");
    if (!caption) return;
    const table = add(el, "table"), head = add(add(table, "thead"), "tr");
    add(table, "caption", { textContent: caption });
    for (const name of ["", ...model.get("columns")]) add(head, name ? "th" : "td", { textContent: name });
    const body = add(table, "tbody");
    rows.forEach(({ row, cells }) => {
      const line = add(body, "tr"), button = add(add(line, "td"), "button", { textContent: "▶", className: "asd-map-button" });
      button.setAttribute("aria-label", `choose and play ${cells[0]}`);
      button.dataset.lmSuppressShortcuts = "true";
      button.onclick = () => model.send({ kind: "pick", row });
      cells.forEach((text) => add(line, "td", { textContent: text }));
    });
    if (model.get("csv")) add(el, "button", { textContent: "Save as CSV", className: "asd-map-button asd-map-csv", onclick: () => model.send({ kind: "csv" }) });
    if (focused >= 0) el.querySelectorAll("button")[focused]?.focus(); // restore the keyboard focus
  };
  for (const trait of ["rows", "caption"]) model.on(`change:${trait}`, show);
  model.on("msg:custom", (message) => {
    if (message.kind !== "csv") return;
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([message.text], { type: "text/csv" })), download: message.name });
    link.click();
    URL.revokeObjectURL(link.href);
  });
  show();
} };
