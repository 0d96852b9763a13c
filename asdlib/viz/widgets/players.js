// Two players: A, the chosen clip, and B, its nearest normal clip. One plays at a time; B continues at the position of A.
export default { render({ model, el }) {
  el.classList.add("asd-map-players");
  const make = (letter) => {
    const row = el.appendChild(document.createElement("div")), words = row.appendChild(document.createElement("span"));
    const audio = row.appendChild(Object.assign(document.createElement("audio"), { controls: true, preload: "auto", className: `asd-map-player-${letter}` }));
    const show = () => {
      const source = model.get(letter), name = model.get(`${letter}_name`);
      row.hidden = !source;
      words.textContent = `${letter.toUpperCase()}: ${name}`;
      audio.setAttribute("aria-label", name);
      if (audio.getAttribute("src") === source) return;
      audio.pause();
      if (source) audio.src = source;
      else audio.removeAttribute("src"), audio.load(); // otherwise the old clip stays loaded and keeps playing
    };
    for (const trait of [letter, `${letter}_name`]) model.on(`change:${trait}`, show);
    show();
    audio.addEventListener("play", () => [a, b].forEach((other) => other !== audio && other.pause()));
    return audio;
  };
  let a, b;
  const play = (audio, from) => {
    if (!audio.getAttribute("src")) return;
    audio.currentTime = from;
    audio.play().catch(() => {}); // the browser may require a user gesture first, for which the player is visible
  };
  const change = () => {
    const [now, next] = b.paused ? [a, b] : [b, a];
    play(next, now.paused ? 0 : now.currentTime);
  };
  a = make("a"), b = make("b");
  const button = el.appendChild(Object.assign(document.createElement("button"), { className: "asd-map-button asd-map-switch", onclick: change }));
  const label = () => ((button.hidden = !model.get("b")), (button.textContent = "Switch between A and B (key b on the map)"));
  model.on("change:b", label);
  label();
  model.on("msg:custom", (message) => (message.kind === "play" ? play(a, 0) : message.kind === "switch" && change()));
} };
