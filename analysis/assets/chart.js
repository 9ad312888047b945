// Line charts and layer maps as SVG. Looks are in page.css: the page's policy allows no style attribute.

const WIDE = 380;
const HIGH = 200;
const EDGE = { left: 46, right: 14, top: 12, bottom: 34 };

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function ticks(low, high) {
  const raw = (high - low) / 4 || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * unit >= raw) * unit;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) {
    found.push(Number(value.toPrecision(10)));
  }
  return found;
}

function scaleOf(values) { // logarithmic where values differ a hundredfold
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low > 0 && high / low > 100) {
    const powers = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const marks = Array.from({ length: powers[1] - powers[0] + 1 }, (_, i) => 10 ** (powers[0] + i));
    return { at: (y) => (Math.log10(y) - powers[0]) / (powers[1] - powers[0]), marks };
  }
  const pad = (high - low) * 0.08 || Math.abs(high) * 0.08 || 1;
  return { at: (y) => (y - low + pad) / (high - low + 2 * pad), marks: ticks(low - pad, high + pad) };
}

function chart(title, xs, ys, levels, look) {
  const points = xs.map((x, i) => [x, ys[i]]).filter(([, y]) => y !== null);
  const caption = el('figcaption', {}, title);
  if (!points.length) return el('figure', { class: 'own' }, caption, el('p', { class: 'quiet' }, 'No finite number.'));
  const scale = scaleOf([...points.map(([, y]) => y), ...levels.map(({ level }) => level)]);
  const [first, last] = [xs[0], xs.at(-1)];
  const across = (x) => EDGE.left + ((WIDE - EDGE.left - EDGE.right) * (last === first ? 0.5 : (x - first) / (last - first)));
  const down = (y) => HIGH - EDGE.bottom - (HIGH - EDGE.top - EDGE.bottom) * scale.at(y);
  const line = (x1, y1, x2, y2, look) => svg('line', { x1, y1, x2, y2, class: look });
  const lines = scale.marks.flatMap((y) => [line(EDGE.left, down(y), WIDE - EDGE.right, down(y), 'rule'),
    svg('text', { x: EDGE.left - 8, y: down(y) + 4, class: 'end' }, y < 0.001 && y > 0 ? y.toExponential(0) : String(y))]);
  const few = xs.length <= 5 ? xs : ticks(first, last);
  const names = few.filter((x, i) => !i || across(x) - across(few[i - 1]) > 22)
    .map((x) => svg('text', { x: across(x), y: HIGH - 16, class: 'middle' }, count(x)));
  const path = points.map(([x, y], i) => `${i ? 'L' : 'M'}${across(x).toFixed(1)} ${down(y).toFixed(1)}`).join('');
  const dots = points.length > 12 ? []
    : points.map(([x, y]) => svg('circle', { cx: across(x), cy: down(y), r: 3.5, class: 'dot' }));
  const refs = levels.map(({ level, kind }) => line(EDGE.left, down(level), WIDE - EDGE.right, down(level), kind));
  const [begin, end] = [points[0], points.at(-1)];
  const spoken = `${title}: ${exact(begin[1], 4)} at ${begin[0]} updates, ${exact(end[1], 4)} at ${end[0]}`;
  const picture = svg('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, role: 'img', 'aria-label': spoken, class: look }, ...lines, ...refs, ...names,
    svg('text', { x: WIDE - EDGE.right, y: HIGH - 2, class: 'end' }, 'updates'),
    svg('path', { d: path, class: 'curve' }), ...dots);
  const keys = levels.length ? [{ name: 'this run', kind: 'curve' }, ...levels] : [];
  const legend = keys.map(({ name, kind }) => el('span', {},
    svg('svg', { viewBox: '0 0 24 8', 'aria-hidden': 'true', class: look }, line(0, 4, 24, 4, kind)), name));
  return el('figure', { class: 'own' }, caption, picture, el('p', { class: 'legend' }, ...legend));
}

function layerMap(stack, layers, depth) {
  const step = Math.min(34, (WIDE - 90) / Math.max(layers.length, depth, 2));
  const at = (layer) => 84 + step * layer;
  const lines = layers.flatMap((sources, layer) => sources.map((source) =>
    svg('line', { x1: at(source), y1: 22, x2: at(layer), y2: 66, class: 'flow' })));
  const row = (number, y, used) => Array.from({ length: number }, (_, i) =>
    svg('circle', { cx: at(i), cy: y, r: Math.min(7, step / 3), class: used(i) ? 'layer' : 'layer unused' }));
  const carried = new Set(layers.flat());
  const words = layers.map((sources, layer) => `${layer} from ${sources.join(' and ') || 'nothing'}`).join(', ');
  const picture = svg('svg', { viewBox: `0 0 ${WIDE} 88`, role: 'img', 'aria-label': `${stack} layers: ${words}` }, ...lines,
    svg('text', { x: 0, y: 26 }, 'origin'), ...row(depth, 22, (i) => carried.has(i)),
    svg('text', { x: 0, y: 70 }, 'receiving'), ...row(layers.length, 66, (i) => layers[i].length));
  return el('figure', { class: 'own' }, el('figcaption', {}, `${stack} layers`), picture);
}
