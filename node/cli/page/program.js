"use strict";
/* One page, one program. The tree on the left, the graph of the group in view, and the facts of what is selected. */

const data = JSON.parse(document.getElementById("data").textContent);
const { values, sources, groups, outputs } = data;
const el = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const CLASSES = {
  product: ["matrix products", "matmul_nt"],
  arithmetic: ["arithmetic", "add sub mul relu positive one_hot div_floor isqrt"],
  rounding: ["rounding and bounds", "rescale clamp check"],
  row: ["sums and maxima", "reduce_sum reduce_max scatter_add"],
  table: ["tables", "lookup"],
  choice: ["choice and chance", "gather select permute random"],
  shape: ["shapes", "reshape transpose broadcast slice concat"],
  state: ["state and data", "state data seed constant"],
};
const classOf = Object.fromEntries(Object.entries(CLASSES).flatMap(([name, [, all]]) => all.split(" ").map((op) => [op, name])));
const hue = (opcode) => `var(--${classOf[opcode] || "arithmetic"})`;

const consumers = values.map(() => []);
values.forEach((value, number) => new Set(value.operands).forEach((operand) => consumers[operand].push(number)));
const outputNames = {};
for (const [name, number] of outputs) (outputNames[number] ||= []).push(name);

/* Groups come as a tree of ranges of value numbers; every group learns its parent and its sums. */
const all = [];
function adopt(group, parent) {
  group.parent = parent;
  group.id = all.push(group) - 1;
  (group.groups || []).forEach((child) => adopt(child, group));
  group.macs = 0;
  group.mix = {};
  const targets = new Set();
  for (let n = group.first; n <= group.last; n++) {
    group.macs += values[n].macs;
    const kind = classOf[values[n].opcode] || "arithmetic";
    group.mix[kind] = (group.mix[kind] || 0) + 1;
    const source = sources[values[n].source];
    if (source && source.target) targets.add(source.target.replace(/^aten\./, "").replace(/\.(default|Tensor|Scalar|int)$/, ""));
  }
  group.targets = [...targets];
}
adopt(groups, null);
const count = (group) => group.last - group.first + 1;
const quantity = (n) => (n >= 1e9 ? (n / 1e9).toPrecision(3) + " G" : n >= 1e6 ? (n / 1e6).toPrecision(3) + " M" : n >= 1e3 ? (n / 1e3).toPrecision(3) + " k" : String(n));
const summary = (group) => `${count(group)} operation${count(group) === 1 ? "" : "s"}` + (group.macs ? ` · ${quantity(group.macs)} MACs` : "");
/* The innermost group that holds a value. */
function home(number) {
  let group = groups;
  for (;;) {
    const inner = (group.groups || []).find((child) => child.first <= number && number <= child.last);
    if (!inner) return group;
    group = inner;
  }
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}
function svg(tag, attributes = {}, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/* --- header --- */
for (const [label, value] of data.figures) el("figures").append(make("div", {}, make("dt", {}, label), make("dd", {}, value)));
for (const [opcode, times] of data.opcodes) {
  el("opcodes").append(make("button", { class: "chip", style: `--hue: ${hue(opcode)}`, onclick: () => find(opcode) }, opcode, make("b", {}, times)));
}
el("legend").append(...Object.entries(CLASSES).map(([name, [label]]) => make("span", {}, make("i", { style: `background: var(--${name})` }), label)));

/* --- tree --- */
function bar(group) {
  const total = count(group);
  const parts = Object.keys(CLASSES).filter((name) => group.mix[name]);
  return make("span", { class: "bar" }, ...parts.map((name) => make("i", { style: `width: ${(100 * group.mix[name]) / total}%; background: var(--${name})` })));
}
function row(number) {
  const value = values[number];
  const label = value.name || value.spelled;
  return make("div", { class: "op mono", "data-n": number, onclick: () => select(number, true) }, make("span", {}, number), make("span", {}, label), make("span", {}, value.shape));
}
function branch(group) {
  const body = make("div");
  const node = make("details", { "data-g": group.id }, make("summary", { title: group.label }, bar(group), group.label, make("small", {}, summary(group))), body);
  group.fill = () => {
    if (body.childElementCount) return;
    if (group.groups) body.append(...group.groups.map(branch));
    else for (let n = group.first; n <= group.last; n++) body.append(row(n));
  };
  node.ontoggle = () => node.open && group.fill();
  group.node = node;
  return node;
}
const entry = make("div");
for (let n = 0; n < data.first; n++) if (!(values[n].opcode === "constant" && values[n].shape === "scalar")) entry.append(row(n));
el("tree").append(make("details", {}, make("summary", {}, "inputs and tables", make("small", {}, String(entry.childElementCount))), entry));
el("tree").append(...(groups.groups || [groups]).map(branch));

/* --- search --- */
function matches(number, words) {
  const value = values[number];
  const source = sources[value.source];
  const text = [value.opcode, value.spelled, value.name || "", value.shape, `%${number}`, (outputNames[number] || []).join(" ")];
  if (source) text.push(source.place, `line ${source.line}`, source.code, source.module, source.target);
  const heap = text.join("  ").toLowerCase();
  return words.every((word) => heap.includes(word));
}
function find(text) {
  el("search").value = text;
  const words = text.toLowerCase().match(/line \d+|\S+/g);
  el("found").hidden = !words;
  el("tree").hidden = !!words;
  if (!words) return;
  const hits = [];
  for (let n = 0; n < values.length; n++) if (matches(n, words)) hits.push(n);
  el("found").replaceChildren(make("p", { class: "hint" }, `${hits.length} found` + (hits.length > 400 ? ", the first 400 shown" : "")), ...hits.slice(0, 400).map(row));
}
el("search").oninput = () => find(el("search").value);

/* --- facts --- */
const link = (number) => make("a", { onclick: () => select(number, true), class: "mono" }, values[number].name || `%${number} ${values[number].opcode}`);
const links = (numbers) => numbers.slice(0, 40).flatMap((number, i) => (i ? [", ", link(number)] : [link(number)])).concat(numbers.length > 40 ? [` and ${numbers.length - 40} more`] : []);
function facts(number) {
  const value = values[number];
  const rows = [
    ["number", `%${number}`],
    ["operation", value.spelled],
    ["shape", `${value.shape} (${value.elements.toLocaleString("en")})`],
    ["bits", `${value.bits}, kept in ${value.bytes_each} byte${value.bytes_each > 1 ? "s" : ""}`],
    ["size", value.size],
    ["frac", `${value.frac}: one unit is 2^${-value.frac}`],
    ["integers", value.interval],
    ["numbers", value.real],
  ];
  if (value.macs) rows.push(["MACs", value.macs.toLocaleString("en")]);
  const table = make("table", {}, ...rows.map(([label, text]) => make("tr", {}, make("td", {}, label), make("td", { class: "mono" }, text))));
  if (value.operands.length) table.append(make("tr", {}, make("td", {}, "reads"), make("td", {}, ...links(value.operands))));
  if (consumers[number].length) table.append(make("tr", {}, make("td", {}, "read by"), make("td", {}, ...links(consumers[number]))));
  if (outputNames[number]) table.append(make("tr", {}, make("td", {}, "becomes"), make("td", { class: "mono" }, outputNames[number].join(", "))));
  const source = sources[value.source];
  const parts = [make("h2", {}, value.name || value.spelled), table];
  if (source) {
    parts.push(make("pre", {}, source.code));
    parts.push(make("div", { class: "hint" }, `${source.place}${source.module ? ` in ${source.module}` : ""}${source.target ? ` · ${source.target}` : ""}`));
  }
  el("facts").replaceChildren(...parts);
}
function overview(group) {
  const widest = Array.from({ length: count(group) }, (_, i) => group.first + i).sort((a, b) => values[b].bits - values[a].bits).slice(0, 8);
  const costly = Array.from({ length: count(group) }, (_, i) => group.first + i).filter((n) => values[n].macs).sort((a, b) => values[b].macs - values[a].macs).slice(0, 8);
  const list = (title, numbers, fact) => (numbers.length ? [make("h2", { style: "margin-top: 14px" }, title), make("table", {}, ...numbers.map((n) => make("tr", {}, make("td", {}, link(n)), make("td", { class: "mono" }, fact(values[n])))))] : []);
  el("facts").replaceChildren(
    make("h2", {}, group.label),
    make("div", { class: "hint" }, summary(group) + (group.where ? ` · ${group.where}` : "")),
    ...(group.targets.length && group.parent ? [make("pre", {}, group.targets.join("  "))] : []),
    ...list("Most work", costly, (value) => `${quantity(value.macs)} MACs`),
    ...list("Widest values", widest, (value) => `${value.bits} bits`),
  );
}
let selected = null;
function select(number, travel) {
  selected = number;
  facts(number);
  document.querySelectorAll(".op.on").forEach((node) => node.classList.remove("on"));
  if (number >= data.first) {
    const group = home(number);
    if (travel && shown !== group) show(group);
    if (!el("tree").hidden) {
      const chain = [];
      for (let g = group; g; g = g.parent) chain.unshift(g);
      for (const g of chain) if (g.node) { g.node.open = true; g.fill(); }
    }
  }
  document.querySelectorAll(`.op[data-n="${number}"]`).forEach((node) => {
    node.classList.add("on");
    node.scrollIntoView({ block: "nearest" });
  });
  highlight(`v${number}`, travel);
}

/* --- graph: what is in view --- */
let shown = null;
let drawn = { nodes: new Map(), edges: [] };
const LIMIT = 14;
function content(group) {
  const nodes = new Map();
  const inside = (number) => group.first <= number && number <= group.last;
  const children = group.groups || null;
  const keyOf = (number) => {
    if (!inside(number)) return null;
    if (!children) return `v${number}`;
    const child = children.find((each) => each.first <= number && number <= each.last);
    return `g${child.id}`;
  };
  if (children) for (const child of children) nodes.set(`g${child.id}`, { key: `g${child.id}`, group: child, order: child.first });
  else for (let n = group.first; n <= group.last; n++) nodes.set(`v${n}`, { key: `v${n}`, value: n, order: n });
  const edges = new Map();
  const connect = (from, to) => from !== to && edges.set(`${from}>${to}`, { from, to });
  /* Whatever is outside appears as a stub: inputs by name, other groups by their label. */
  const stub = (number, after) => {
    const outer = number < data.first ? null : sibling(group, number);
    const key = (after ? "o" : "i") + (outer ? `g${outer.id}` : `v${number}`);
    if (!nodes.has(key)) nodes.set(key, { key, stub: true, group: outer, value: outer ? undefined : number, order: after ? 1e9 : number - 1e6 });
    return key;
  };
  const many = children && children.length > LIMIT;
  for (let n = group.first; n <= group.last; n++) {
    for (const operand of values[n].operands) {
      const from = keyOf(operand);
      if (from) connect(from, keyOf(n));
      else if (values[operand].opcode === "constant") continue;
      else if (operand >= data.first || !many) connect(stub(operand, false), keyOf(n));
    }
    if (group.parent) {
      const outside = consumers[n].filter((number) => !inside(number));
      for (const number of outside.slice(0, 6)) connect(keyOf(n), stub(number, true));
    }
    if (!many) for (const name of outputNames[n] || []) {
      const key = `s${name}`;
      nodes.set(key, { key, stub: true, label: `→ ${name}`, value: n, order: 1e9 });
      connect(keyOf(n), key);
    }
  }
  return { nodes: [...nodes.values()], edges: [...edges.values()] };
}
/* The group beside `group` (or beside one of its ancestors) that holds a value. */
function sibling(group, number) {
  for (let up = group.parent; up; up = up.parent) {
    if (up.first <= number && number <= up.last) return (up.groups || []).find((each) => each.first <= number && number <= each.last);
  }
  return null;
}

/* --- graph: layers --- */
function layout(nodes, edges) {
  const by = new Map(nodes.map((node) => [node.key, node]));
  for (const node of nodes) Object.assign(node, { ins: [], outs: [], layer: 0 });
  for (const edge of edges) { by.get(edge.from).outs.push(edge); by.get(edge.to).ins.push(edge); }
  const ordered = nodes.slice().sort((a, b) => a.order - b.order);
  for (const node of ordered) for (const edge of node.outs) by.get(edge.to).layer = Math.max(by.get(edge.to).layer, node.layer + 1);
  /* A source sits just above its first reader, not at the far top. */
  for (const node of ordered.slice().reverse()) if (!node.ins.length && node.outs.length) node.layer = Math.min(...node.outs.map((edge) => by.get(edge.to).layer)) - 1;
  const least = Math.min(...nodes.map((node) => node.layer));
  const layers = [];
  const put = (node) => { (layers[node.layer] ||= []).push(node); };
  for (const node of ordered) { node.layer -= least; put(node); }
  /* Long edges get invisible places in the layers between, so that they are led around the nodes. */
  for (const edge of edges) {
    const from = by.get(edge.from), to = by.get(edge.to);
    edge.via = [];
    let last = from;
    if (to.layer - from.layer <= 24) for (let layer = from.layer + 1; layer < to.layer; layer++) {
      const bend = { bend: true, layer, width: 10, height: 0, ups: [last], downs: [] };
      (last.downs ||= []).push(bend);
      edge.via.push(bend);
      put(bend);
      last = bend;
    }
    (last.downs ||= []).push(to);
    (to.ups ||= []).push(last);
  }
  for (let i = 0; i < layers.length; i++) layers[i] ||= [];
  const place = () => layers.forEach((layer) => layer.forEach((node, i) => { node.rank = i; }));
  place();
  const middle = (list) => list.reduce((sum, node) => sum + node.rank, 0) / list.length;
  for (let sweep = 0; sweep < 8; sweep++) {
    const down = sweep % 2 === 0;
    const walk = down ? layers : layers.slice().reverse();
    for (const layer of walk) {
      for (const node of layer) { const near = down ? node.ups : node.downs; node.wish = near && near.length ? middle(near) : node.rank; }
      layer.sort((a, b) => a.wish - b.wish);
      layer.forEach((node, i) => { node.rank = i; });
    }
  }
  /* Horizontal places: towards the mean of the neighbours, no overlap. */
  const GAP = 18;
  for (const layer of layers) {
    let x = -layer.reduce((sum, node) => sum + node.width + GAP, -GAP) / 2;
    for (const node of layer) { node.x = x + node.width / 2; x += node.width + GAP; }
  }
  for (let pass = 0; pass < 12; pass++) {
    for (const layer of pass % 2 ? layers : layers.slice().reverse()) {
      for (const node of layer) {
        const near = [...(node.ups || []), ...(node.downs || [])];
        if (near.length) node.wish = near.reduce((sum, each) => sum + each.x, 0) / near.length; else node.wish = node.x;
      }
      const shift = (list, sign) => {
        let edge = -Infinity;
        const at = [];
        for (const node of list) {
          const x = Math.max(sign * node.wish, edge + node.width / 2);
          at.push(sign * x);
          edge = x + node.width / 2 + GAP;
        }
        return at;
      };
      const right = shift(layer, 1), left = shift(layer.slice().reverse(), -1).reverse();
      layer.forEach((node, i) => { node.x = (right[i] + left[i]) / 2; });
    }
  }
  let y = 0;
  for (const layer of layers) {
    const height = Math.max(0, ...layer.map((node) => node.height));
    for (const node of layer) node.y = y + height / 2;
    y += height + Math.min(90, 26 + 3 * layer.length);
  }
}

/* --- graph: drawing --- */
const ruler = document.createElement("canvas").getContext("2d");
function textWidth(text, font) { ruler.font = font; return ruler.measureText(text).width; }
const clip = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);
function words(node) {
  if (node.label) return [node.label, "new state"];
  if (node.group) {
    const { targets } = node.group;
    const what = targets.length ? clip(targets.slice(0, 3).join(" "), 34) + (targets.length > 3 ? " …" : "") + " · " : "";
    return [clip(node.group.label, 46), node.stub ? "elsewhere" : what + summary(node.group)];
  }
  const value = values[node.value];
  return [clip(value.name || value.spelled, 44), `${value.shape} · ${value.bits} bits · frac ${value.frac}`];
}
function show(group) {
  shown = group;
  const { nodes, edges } = content(group);
  for (const node of nodes) {
    [node.title, node.sub] = words(node);
    node.width = Math.max(64, textWidth(node.title, "12px ui-monospace, monospace"), textWidth(node.sub, "11px system-ui")) + 26;
    node.height = 40;
  }
  layout(nodes, edges);
  const camera = el("camera");
  camera.replaceChildren();
  drawn = { nodes: new Map(), edges: [] };
  const by = new Map(nodes.map((node) => [node.key, node]));
  for (const edge of edges) {
    const from = by.get(edge.from), to = by.get(edge.to);
    let [x, y] = [from.x, from.y + from.height / 2];
    let d = `M${x},${y}`;
    for (const stop of [...edge.via, to]) {
      const [nx, ny] = [stop.x, stop.y - stop.height / 2];
      const half = (ny - y) / 2;
      d += `C${x},${y + half} ${nx},${ny - half} ${nx},${ny}`;
      [x, y] = [nx, ny];
    }
    const path = svg("path", { class: "edge", d });
    camera.append(path);
    drawn.edges.push({ ...edge, path });
  }
  for (const node of nodes) {
    const box = svg("g", { class: "node" + (node.stub ? " stub" : ""), transform: `translate(${node.x - node.width / 2},${node.y - node.height / 2})` });
    box.append(svg("rect", { class: "box", width: node.width, height: node.height, rx: 6 }));
    if (node.group && !node.stub) {
      let x = 10;
      const total = count(node.group), room = node.width - 20;
      for (const name of Object.keys(CLASSES)) {
        const share = ((node.group.mix[name] || 0) / total) * room;
        if (share) box.append(svg("rect", { x, y: node.height - 5, width: share, height: 3, fill: `var(--${name})` }));
        x += share;
      }
    } else if (node.value !== undefined) {
      box.append(svg("rect", { width: 5, height: node.height, rx: 2, fill: node.label ? "var(--state)" : hue(values[node.value].opcode) }));
    }
    box.append(svg("text", { class: "code", x: 13, y: 16 }, node.title), svg("text", { class: "sub", x: 13, y: 30 }, node.sub));
    box.append(svg("title", {}, node.group ? `${node.group.label}\n${summary(node.group)}` : values[node.value].spelled));
    box.addEventListener("click", () => open(node));
    camera.append(box);
    drawn.nodes.set(node.key, box);
  }
  crumbs(group);
  fit(nodes);
}
function open(node) {
  if (moved) return;
  if (node.group) { show(node.group); overview(node.group); if (node.group.node) { let g = node.group; const chain = []; for (; g; g = g.parent) chain.unshift(g); chain.forEach((each) => { if (each.node) { each.node.open = true; each.fill(); } }); node.group.node.scrollIntoView({ block: "nearest" }); } }
  else select(node.value, false);
}
function highlight(key, travel) {
  for (const [name, box] of drawn.nodes) box.classList.toggle("on", name === key);
  for (const edge of drawn.edges) edge.path.classList.toggle("on", edge.from === key || edge.to === key);
  if (travel && drawn.nodes.has(key)) centre(drawn.nodes.get(key));
}
function crumbs(group) {
  const chain = [];
  for (let g = group; g; g = g.parent) chain.unshift(g);
  el("path").replaceChildren(...chain.map((g) => make("button", { onclick: () => { show(g); overview(g); } }, g.label)));
}

/* --- graph: moving about --- */
let view = { x: 0, y: 0, k: 1 };
let moved = false;
const apply = () => el("camera").setAttribute("transform", `translate(${view.x},${view.y}) scale(${view.k})`);
function fit(nodes) {
  const size = el("graph").getBoundingClientRect();
  const xs = nodes.flatMap((n) => [n.x - n.width / 2, n.x + n.width / 2]);
  const ys = nodes.flatMap((n) => [n.y - n.height / 2, n.y + n.height / 2]);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const wide = (size.width - 40) / (x1 - x0), tall = (size.height - 90) / (y1 - y0);
  view.k = Math.min(1.15, Math.max(Math.min(wide, tall), Math.min(wide, 0.62)));
  view.x = size.width / 2 - (view.k * (x0 + x1)) / 2;
  view.y = tall < view.k ? 48 - view.k * y0 : size.height / 2 - (view.k * (y0 + y1)) / 2;
  apply();
}
function centre(box) {
  const size = el("graph").getBoundingClientRect(), at = box.getBoundingClientRect();
  view.x += size.left + size.width / 2 - (at.left + at.width / 2);
  view.y += size.top + size.height / 2 - (at.top + at.height / 2);
  apply();
}
el("graph").addEventListener("wheel", (event) => {
  event.preventDefault();
  const size = el("graph").getBoundingClientRect();
  const [px, py] = [event.clientX - size.left, event.clientY - size.top];
  const k = Math.min(3, Math.max(0.04, view.k * Math.exp(-event.deltaY * 0.0016)));
  view.x = px - ((px - view.x) * k) / view.k;
  view.y = py - ((py - view.y) * k) / view.k;
  view.k = k;
  apply();
}, { passive: false });
el("graph").addEventListener("pointerdown", (event) => {
  moved = false;
  const from = { x: event.clientX, y: event.clientY, vx: view.x, vy: view.y };
  const move = (now) => {
    if (Math.hypot(now.clientX - from.x, now.clientY - from.y) > 4) { moved = true; el("graph").classList.add("dragging"); }
    if (!moved) return;
    view.x = from.vx + now.clientX - from.x;
    view.y = from.vy + now.clientY - from.y;
    apply();
  };
  const stop = () => { removeEventListener("pointermove", move); removeEventListener("pointerup", stop); el("graph").classList.remove("dragging"); };
  addEventListener("pointermove", move);
  addEventListener("pointerup", stop);
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== el("search")) { event.preventDefault(); el("search").focus(); }
  if (event.key === "Escape") { if (el("search").value) find(""); else if (shown.parent) { show(shown.parent); overview(shown); } }
});

show(groups);
overview(groups);
