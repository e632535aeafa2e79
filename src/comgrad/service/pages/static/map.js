// The map of tasks on a canvas: dots are stamped into its pixels (ten thousand in a millisecond or two, without a GPU),
// drawn only when something changed, and found by a grid.
const COLOURS = 12, PAD = 28, CELL = 24;

for (const box of document.querySelectorAll("[data-map]")) new TaskMap(box, "mini" in box.dataset).load();

function TaskMap(box, mini) {
  const canvas = box.querySelector("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
  const tip = box.querySelector(".tip"), said = document.querySelector("[data-said]");
  const hidden = new Set(), pointers = new Map();
  let points = [], exact = 0, xs, ys, kinds, shown, lit = new Set(), focus = [], base = 1, scale = 1, ox = 0, oy = 0;
  let wide = 0, high = 0, dpr = 1, stamps = [], picture = null, pixels = null, drawn = false, at = -1, grid = null, moved = 0, pinch = 0, ink = "", paper = "";

  this.load = async () => {
    const answer = await fetch(box.dataset.map);
    if (!answer.ok) return;
    const found = await answer.json();
    this.show(found.points, found.exact ?? found.points.length);
  };

  this.show = (found, sure) => {
    points = found; exact = sure;
    if (!points.length) return;
    const counts = new Map();
    for (const p of points) counts.set(p.family, (counts.get(p.family) ?? 0) + 1);
    const order = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([name]) => name);
    const place = new Map(order.map((name, i) => [name, i % COLOURS]));
    xs = Float64Array.from(points, (p) => p.x);
    ys = Float64Array.from(points, (p) => -p.y);
    kinds = Uint8Array.from(points, (p) => place.get(p.family));
    shown = new Uint8Array(points.length).fill(1);
    focus = (box.dataset.focus ?? "").split(",").map((id) => points.findIndex((p) => p.id === id)).filter((i) => i >= 0);
    box.querySelector(".still")?.remove();
    canvas.hidden = false;
    new ResizeObserver(resize).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    document.addEventListener("theme", paint);
    if (!mini) listen();
    resize();
  };

  function resize() {
    const old = wide;
    wide = box.clientWidth; high = box.clientHeight; dpr = Math.min(devicePixelRatio || 1, 2);
    canvas.width = Math.round(wide * dpr); canvas.height = Math.round(high * dpr);
    if (!old) whole(); else { fit(); paint(); }
  }

  function extent() {
    let [l, r, t, b] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < xs.length; i++) { l = Math.min(l, xs[i]); r = Math.max(r, xs[i]); t = Math.min(t, ys[i]); b = Math.max(b, ys[i]); }
    return [l, r, t, b];
  }

  function fit() {
    const [l, r, t, b] = extent(), pad = mini ? 14 : PAD;
    base = Math.min((wide - 2 * pad) / (r - l || 1), (high - 2 * pad) / (b - t || 1));
    return [(l + r) / 2, (t + b) / 2];
  }

  function whole() {
    const [x, y] = fit();
    scale = base; ox = wide / 2 - x * scale; oy = high / 2 - y * scale;
    paint();
  }

  function radius() { return mini ? 4 : Math.max(2.2, Math.min(7, (points.length > 2000 ? 2.2 : points.length > 300 ? 3.4 : 5.5) * Math.sqrt(Math.sqrt(scale / base)))); }

  function paint() { // colours and dot pictures for this theme and size
    const style = getComputedStyle(document.documentElement);
    ink = style.getPropertyValue("--ink").trim(); paper = style.getPropertyValue("--raised").trim();
    const r = radius(), side = Math.ceil((r + 1) * 2 * dpr);
    const dot = document.createElement("canvas");
    dot.width = dot.height = side;
    const p = dot.getContext("2d", { willReadFrequently: true });
    stamps = [0.3, 1].flatMap((strength) => Array.from({ length: COLOURS }, (_, i) => {
      p.globalAlpha = 1; p.fillStyle = paper; p.fillRect(0, 0, side, side);
      p.globalAlpha = strength; p.fillStyle = style.getPropertyValue(`--c${i}`).trim();
      p.beginPath(); p.arc(side / 2, side / 2, r * dpr, 0, 7); p.fill();
      const from = new Uint32Array(p.getImageData(0, 0, side, side).data.buffer), xy = [], colours = [];
      for (let k = 0; k < from.length; k++) {
        const x = k % side, y = (k - x) / side;
        if (Math.hypot(x + 0.5 - side / 2, y + 0.5 - side / 2) > (r + 0.7) * dpr) continue;
        xy.push(y * canvas.width + x); colours.push(from[k]);
      }
      return { side, xy: Int32Array.from(xy), colours: Uint32Array.from(colours) };
    }));
    if (picture?.width !== canvas.width || picture?.height !== canvas.height) {
      picture = new ImageData(Math.max(1, canvas.width), Math.max(1, canvas.height));
      pixels = new Uint32Array(picture.data.buffer);
    }
    view();
  }

  function view() { grid = null; redraw(); }

  function redraw() { if (!drawn) { drawn = true; requestAnimationFrame(draw); } }

  function draw() {
    drawn = false;
    pixels.fill(0);
    const side = stamps[0].side, w = canvas.width, h = canvas.height, dim = lit.size > 0;
    for (let pass = dim ? 0 : 1; pass < 2; pass++) for (let i = xs.length - 1; i >= 0; i--) { // those whose place is sure on top
      if (!shown[i] || (dim && lit.has(i) !== !!pass)) continue;
      const x = Math.round((xs[i] * scale + ox) * dpr - side / 2), y = Math.round((ys[i] * scale + oy) * dpr - side / 2);
      if (x < 0 || y < 0 || x + side > w || y + side > h) continue;
      const { xy, colours } = stamps[pass * COLOURS + kinds[i]], from = y * w + x;
      for (let k = 0; k < xy.length; k++) pixels[from + xy[k]] = colours[k];
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.putImageData(picture, 0, 0);
    pen.scale(dpr, dpr);
    for (const i of focus) ring(i, radius() + 4, 2);
    if (at >= 0 && shown[at]) ring(at, radius() + 3, 2.5);
    names();
  }

  function ring(i, r, width) {
    pen.strokeStyle = ink; pen.lineWidth = width;
    pen.beginPath(); pen.arc(xs[i] * scale + ox, ys[i] * scale + oy, r, 0, 7); pen.stroke();
  }

  function names() { // as many as fit without touching, the marked ones first
    if (mini) return;
    const inside = [], first = new Set([...focus, ...lit]);
    for (const i of first) if (shown[i] && inside.length < 400) inside.push(i);
    for (let i = 0; i < xs.length && inside.length < 400; i++) {
      const x = xs[i] * scale + ox, y = ys[i] * scale + oy;
      if (shown[i] && !first.has(i) && !lit.size && x > 0 && y > 0 && x < wide && y < high) inside.push(i);
    }
    if (inside.length >= 400 && !first.size) return;
    pen.font = "12px system-ui, sans-serif"; pen.fillStyle = ink; pen.textBaseline = "middle";
    pen.strokeStyle = paper; pen.lineWidth = 3; pen.lineJoin = "round";
    const r = radius(), taken = inside.map((i) => [xs[i] * scale + ox - r, ys[i] * scale + oy, 2 * r]);
    for (const i of inside.slice(0, 220)) {
      const whole = wide < 600 ? points[i].name.split("/").pop() : points[i].name, most = wide < 600 ? 20 : 34;
      const name = whole.length > most ? `${whole.slice(0, most - 1)}…` : whole;
      const w = pen.measureText(name).width + 6, x = xs[i] * scale + ox, y = ys[i] * scale + oy;
      const free = (l) => l >= 0 && l + w <= wide && !taken.some((t) => l < t[0] + t[2] && t[0] < l + w && Math.abs(y - t[1]) < 14);
      const off = focus.includes(i) ? 5 : 0, left = [x + r + 4 + off, x - r - w - off].find(free);
      if (left === undefined) continue;
      taken.push([left, y, w]);
      pen.strokeText(name, left, y); pen.fillText(name, left, y);
    }
  }

  function cells() { // screen cell -> points, made after a drawing when first asked for
    if (grid) return grid;
    grid = new Map();
    for (let i = 0; i < xs.length; i++) {
      if (!shown[i]) continue;
      const key = Math.floor((xs[i] * scale + ox) / CELL) * 65536 + Math.floor((ys[i] * scale + oy) / CELL);
      const cell = grid.get(key);
      cell ? cell.push(i) : grid.set(key, [i]);
    }
    return grid;
  }

  function near(x, y) {
    let best = -1, least = CELL * CELL;
    const cx = Math.floor(x / CELL), cy = Math.floor(y / CELL), found = cells();
    for (let i = cx - 1; i <= cx + 1; i++) for (let j = cy - 1; j <= cy + 1; j++) for (const k of found.get(i * 65536 + j) ?? []) {
      const d = (xs[k] * scale + ox - x) ** 2 + (ys[k] * scale + oy - y) ** 2;
      if (d < least) { least = d; best = k; }
    }
    return best;
  }

  function mark(i, speak) {
    if (i === at && !speak) return;
    at = i;
    tip.hidden = i < 0;
    canvas.style.cursor = i < 0 ? "" : "pointer";
    if (i >= 0) {
      const p = points[i], words = p.description.length > 160 ? `${p.description.slice(0, 159)}…` : p.description;
      const line = (tag, text) => Object.assign(document.createElement(tag), { textContent: text, dir: "auto" });
      tip.replaceChildren(line("strong", p.name), line("span", p.family), line("span", words), ...(i < exact ? [] : [line("em", "Its place is approximate.")]));
      const x = xs[i] * scale + ox, y = ys[i] * scale + oy, r = radius() + 8;
      const left = x + r + tip.offsetWidth > wide ? x - r - tip.offsetWidth : x + r;
      const top = Math.max(6, Math.min(y - tip.offsetHeight / 2, high - tip.offsetHeight - 6));
      tip.style.transform = `translate(${Math.max(6, Math.min(left, wide - tip.offsetWidth - 6))}px, ${top}px)`;
      if (speak) said.textContent = `${p.name}${p.family ? `, ${p.family}` : ""}. ${words}${i < exact ? "" : " Its place is approximate."}`;
    }
    redraw();
  }

  function zoom(factor, x = wide / 2, y = high / 2) {
    const to = Math.max(base * 0.6, Math.min(base * 400, scale * factor));
    ox = x - (x - ox) * (to / scale); oy = y - (y - oy) * (to / scale); scale = to;
    paint();
  }

  function open(i) { if (i >= 0) location.assign(`/vectors/${encodeURIComponent(points[i].id)}`); }

  function step(dx, dy) { // to the nearest point in that direction
    if (at < 0) return mark(near(wide / 2, high / 2) >= 0 ? near(wide / 2, high / 2) : shown.indexOf(1), true);
    let best = -1, least = Infinity;
    for (let i = 0; i < xs.length; i++) {
      const x = xs[i] - xs[at], y = ys[i] - ys[at], along = x * dx + y * dy, across = Math.abs(x * dy - y * dx);
      if (!shown[i] || i === at || along <= 0 || across > along * 2) continue;
      const far = along + across;
      if (far < least) { least = far; best = i; }
    }
    if (best < 0) return;
    const x = xs[best] * scale + ox, y = ys[best] * scale + oy;
    if (x < 40 || y < 40 || x > wide - 40 || y > high - 40) { ox += wide / 2 - x; oy += high / 2 - y; view(); }
    mark(best, true);
  }

  function centre(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  function listen() {
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...centre(event)); }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); pointers.set(event.pointerId, centre(event)); moved = 0; pinch = 0; });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = centre(event), before = pointers.get(event.pointerId);
      if (!before) return mark(near(x, y), false);
      pointers.set(event.pointerId, [x, y]);
      moved += Math.hypot(x - before[0], y - before[1]);
      if (pointers.size === 2) {
        const [a, b] = [...pointers.values()], far = Math.hypot(a[0] - b[0], a[1] - b[1]);
        if (pinch) zoom(far / pinch, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
        pinch = far;
        return;
      }
      ox += x - before[0]; oy += y - before[1];
      if (at >= 0) { at = -1; tip.hidden = true; }
      view();
    });
    const end = (event) => {
      const was = pointers.get(event.pointerId);
      pointers.delete(event.pointerId); pinch = 0;
      if (!was || event.type !== "pointerup" || moved > 5) return;
      const found = near(...was);
      if (event.pointerType === "mouse" || found === at) open(found); else mark(found, true); // a finger looks first
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => { if (!pointers.size && document.activeElement !== canvas) mark(-1, false); });
    canvas.addEventListener("keydown", (event) => {
      const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (event.key in arrows) step(...arrows[event.key]);
      else if (event.key === "Enter") open(at);
      else if (event.key === "+" || event.key === "=") zoom(1.5);
      else if (event.key === "-") zoom(1 / 1.5);
      else if (event.key === "0") whole();
      else if (event.key === "Escape") mark(-1, false);
      else return;
      event.preventDefault();
    });
    const tools = document.querySelector("[data-zoom]");
    tools.hidden = false;
    tools.addEventListener("click", (event) => ({ in: () => zoom(1.6), out: () => zoom(1 / 1.6), whole })[event.target.dataset.act]?.());
    for (const button of document.querySelectorAll("[data-family]")) button.addEventListener("click", () => {
      const name = button.dataset.family, on = hidden.has(name);
      on ? hidden.delete(name) : hidden.add(name);
      button.setAttribute("aria-pressed", String(on));
      points.forEach((p, i) => { shown[i] = hidden.has(p.family) ? 0 : 1; });
      mark(-1, false); view();
    });
    const find = document.querySelector("[data-find]");
    find.form.addEventListener("submit", (event) => { if (document.activeElement === find) { event.preventDefault(); if (lit.size) mark([...lit][0], true); } });
    find.addEventListener("input", () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const text = (p) => `${p.name} ${p.family} ${p.description}`.toLowerCase();
      lit = new Set(words.length ? points.flatMap((p, i) => (words.every((w) => text(p).includes(w)) ? [i] : [])) : []);
      said.textContent = words.length ? `${lit.size} found` : "";
      redraw();
    });
  }
}
