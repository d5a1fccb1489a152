// The films: means of attention maps that were computed once, drawn on a canvas. No kernel, no network.
(() => {
  const root = document.getElementById("g2g-films");
  if (!root || !window.g2gIndex) return;
  const index = window.g2gIndex, films = {}, SIZE = 384;
  const base = [...document.scripts].find(s => s.src.endsWith("films/index.js")).src.replace("index.js", "");
  let film = null, state = null;

  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const field = (text, node) => {
    node.id = "g2g-" + text.replace(/\W+/g, "-").toLowerCase();
    return [make("label", {htmlFor: node.id, textContent: text}), node];
  };
  const options = (select, texts) =>
    select.replaceChildren(...texts.map((t, i) => make("option", {value: i, textContent: t})));

  const canvas = make("canvas", {width: SIZE, height: SIZE});
  canvas.setAttribute("role", "img");
  const choice = make("select"), method = make("select"), words = make("div", {id: "g2g-words"});
  const layer = make("select"), from = make("input", {type: "range", min: 0, step: 1});
  const to = make("input", {type: "range", min: 0, step: 1});
  const numbers = make("div", {className: "numbers", id: "g2g-numbers"});
  const span = make("small");
  numbers.setAttribute("aria-live", "polite");
  options(choice, index.titles);
  root.replaceChildren(
    make("div", {}, canvas, numbers),
    make("div", {className: "side"}, ...field("Film", choice), ...field("Method", method),
      make("label", {textContent: "Words"}), words, ...field("Layers", layer),
      ...field("First timestep", from), ...field("Last timestep", to), span));

  const decode = packed => {
    if (!packed.levels)
      packed.levels = Int8Array.from(atob(packed.bytes), c => c.charCodeAt(0) << 24 >> 24);
    return packed;
  };
  // Bilinear, as the metrics enlarge: centres of pixels, edges repeat.
  const enlarge = (map, side, size) => {
    const out = new Float32Array(size * size), k = side / size;
    const at = i => Math.min(Math.max((i + 0.5) * k - 0.5, 0), side - 1);
    for (let y = 0; y < size; y++) {
      const fy = at(y), y0 = Math.floor(fy), y1 = Math.min(y0 + 1, side - 1), v = fy - y0;
      for (let x = 0; x < size; x++) {
        const fx = at(x), x0 = Math.floor(fx), x1 = Math.min(x0 + 1, side - 1), u = fx - x0;
        out[y * size + x] =
          (1 - v) * ((1 - u) * map[y0 * side + x0] + u * map[y0 * side + x1]) +
          v * ((1 - u) * map[y1 * side + x0] + u * map[y1 * side + x1]);
      }
    }
    return out;
  };
  const scaled = map => {
    let low = Infinity, high = -Infinity;
    for (const v of map) { low = Math.min(low, v); high = Math.max(high, v); }
    return map.map(v => (v - low) / (high - low || 1));
  };
  const columns = () => film.words.filter((_, i) => state.on[i]).flatMap(w => w.columns);
  const chosenLayers = () => {
    const value = Number(layer.value);
    if (value === 0) return film.layers.filter((_, i) => film.chosen[i]);
    return value === 1 ? film.layers : [film.layers[value - 2]];
  };
  // Mean over layers, timesteps and tokens; maps are repeated to the latent's size (nearest).
  const attention = () => {
    const side = film.latent, sum = new Float32Array(side * side), chosen = columns();
    const N = film.counts.length, total = chosen.reduce((s, c) => s + film.counts[c], 0);
    const some = chosenLayers(), a = Number(from.value), b = Number(to.value);
    for (const one of some) {
      const {levels, scales} = decode(one), h = one.side, area = h * h, step = side / h;
      const mean = new Float32Array(area);
      for (let t = a; t <= b; t++)
        for (const c of chosen) {
          const m = t * N + c, weight = scales[m] * film.counts[c] / (total * (b - a + 1));
          for (let p = 0; p < area; p++) mean[p] += weight * levels[m * area + p];
        }
      for (let y = 0; y < side; y++)
        for (let x = 0; x < side; x++)
          sum[y * side + x] += mean[Math.floor(y / step) * h + Math.floor(x / step)] / some.length;
    }
    return sum;
  };
  const single = packed => {
    const {levels, scales} = decode(packed);
    return Float32Array.from(levels, v => v * scales[0]);
  };
  const contrast = map => {
    if (!film.boxes.length) return NaN;
    const size = film.side, big = enlarge(map, film.latent, size), parts = [[], []];
    for (let y = 0; y < size; y++)
      for (let x = 0; x < size; x++) {
        const inside = film.boxes.some(([bx, by, w, h]) =>
          x >= Math.round(bx) && x < Math.round(bx + w) && y >= Math.round(by) && y < Math.round(by + h));
        parts[inside ? 0 : 1].push(big[y * size + x]);
      }
    const mean = v => v.reduce((s, x) => s + x, 0) / v.length;
    const spread = (v, m) => v.reduce((s, x) => s + (x - m) ** 2, 0) / (v.length - 1);
    const [p, q] = parts.map(mean);
    return (p - q) / Math.sqrt(spread(parts[0], p) + spread(parts[1], q));
  };

  const draw = () => {
    const kind = methods()[method.value][0], signed = kind === "gain";
    const asks = kind === "attention" || kind === "both";
    words.querySelectorAll("button").forEach(b => { b.disabled = !asks; });
    for (const control of [layer, from, to]) control.disabled = !asks;
    if (asks && !columns().length) {
      numbers.textContent = "Choose at least one word.";
      return;
    }
    let map;
    if (kind === "attention") map = scaled(attention());
    else if (kind === "information") map = scaled(single(film.information));
    else if (kind === "both") {
      const told = scaled(single(film.information)), seen = scaled(attention());
      map = scaled(told.map((v, i) => v * Math.sqrt(seen[i])));
    } else map = single(film.gains[methods()[method.value][2]]);
    paint(map, signed);
    const cnr = contrast(map), box = film.boxes.length ? "" : "no box: ";
    numbers.textContent = signed
      ? `${box}CNR ${cnr.toFixed(2)}; red: without the word the model explains the film worse`
      : `${box}CNR ${cnr.toFixed(2)} (contrast of the map, inside the box against outside)`;
    numbers.dataset.cnr = cnr;
    span.textContent = `timesteps ${film.timesteps[from.value]} to ${film.timesteps[to.value]} of ` +
      `${film.timesteps.length}, noisiest first`;
    canvas.setAttribute("aria-label", `${methods()[method.value][1]} of "${film.phrase}" over the film`);
  };
  const paint = (map, signed) => {
    const context = canvas.getContext("2d"), big = enlarge(map, film.latent, SIZE);
    context.imageSmoothingEnabled = false;
    context.drawImage(film.picture, 0, 0, SIZE, SIZE);
    const pixels = context.getImageData(0, 0, SIZE, SIZE), {data} = pixels;
    const top = signed ? Math.max(...map.map(Math.abs)) || 1 : 1;
    for (let i = 0; i < big.length; i++) {
      const v = signed ? (big[i] / top + 1) / 2 : big[i];
      const heat = signed ? Math.abs(big[i]) / top : v;
      const alpha = 0.75 * Math.pow(Math.min(Math.max(heat, 0), 1), 0.7);
      const at = signed ? v : 0.12 + 0.88 * v;
      const colour = (signed ? index.signed : index.heat)[Math.round(Math.min(Math.max(at, 0), 1) * 255)];
      for (let c = 0; c < 3; c++)
        data[4 * i + c] = (1 - alpha) * data[4 * i + c] + alpha * colour[c];
    }
    context.putImageData(pixels, 0, 0);
    context.strokeStyle = "#56B4E9";
    context.lineWidth = 2.5;
    const k = SIZE / film.side;
    for (const [x, y, w, h] of film.boxes) context.strokeRect(x * k, y * k, w * k, h * k);
  };
  const methods = () => [
    ["attention", "Attention"], ["information", "Information of the phrase"],
    ["both", "Attention × information"],
    ...Object.keys(film.gains).map(w => ["gain", `Information of “${w}”, given the rest`, w]),
  ];
  const show = () => {
    state = {on: film.words.map(w => w.content)};
    options(method, methods().map(m => m[1]));
    options(layer, ["those chosen on validation", "all", ...film.layers.map(l => l.label)]);
    from.max = to.max = film.timesteps.length - 1;
    from.value = 0;
    to.value = film.timesteps.length - 1;
    words.replaceChildren(...film.words.map((w, i) => {
      const button = make("button", {type: "button", textContent: w.text});
      button.className = "word" + (w.special ? " special" : "");
      button.setAttribute("aria-pressed", state.on[i]);
      button.onclick = () => {
        state.on[i] = !state.on[i];
        button.setAttribute("aria-pressed", state.on[i]);
        draw();
      };
      return button;
    }));
    draw();
  };
  const open = number => {
    if (films[number]) { film = films[number]; show(); return; }
    document.head.append(make("script", {src: `${base}film-${number}.js`}));
  };
  window.g2gFilm = (number, loaded) => {
    films[number] = loaded;
    loaded.picture = make("img", {src: loaded.image});
    loaded.picture.decode().then(() => { if (Number(choice.value) === number) open(number); });
  };
  choice.onchange = () => open(Number(choice.value));
  method.onchange = layer.onchange = draw;
  from.oninput = () => { to.value = Math.max(to.value, from.value); draw(); };
  to.oninput = () => { from.value = Math.min(to.value, from.value); draw(); };
  open(0);
})();
