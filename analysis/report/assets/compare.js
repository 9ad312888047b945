// The rows of many studies, and charts of their gains against a cost, which follow the filters.

function drawRow(i) {
  const study = get('study', i);
  const to = data.reports[study];
  const fields = shown.map((column) => el('td', { class: column.kind === 'text' ? null : 'number' },
    text(column, get(column.key, i)) + (column.key === 'gain' ? get('mark', i) : '')));
  return el('tr', {}, el('th', { scope: 'row' }, to ? el('a', { href: to }, study) : study), ...fields);
}

const column = (key) => data.columns.find((one) => one.key === key);
const outline = (name) => data.markers[Number(data.looks[name].slice(1)) % data.markers.length];
const distinct = (key, places) => [...new Set(places.map((i) => get(key, i)))];

function drawCharts() {
  const cost = column($('cost').value);
  const there = rows.filter((i) => get('gain', i) !== null && get(cost.key, i) !== null);
  const charts = distinct('basis', there).map((basis) => chart(basis, cost, there.filter((i) => get('basis', i) === basis)));
  $('charts').replaceChildren(...(charts.length ? charts : [el('p', { class: 'quiet' }, 'No row has both a gain and this cost.')]));
}

function chart(basis, cost, places) {
  const names = distinct('strategy', places);
  const legend = names.map((name) => el('li', {},
    svg('svg', { viewBox: '-13 -6 26 12', 'aria-hidden': 'true', class: `plot key ${data.looks[name]}` },
      svg('path', { class: 'dot', d: outline(name) })), name));
  return el('figure', { class: 'chart' }, el('figcaption', {}, `${basis}: gain against ${cost.label}.`),
    el('ul', { class: 'legend' }, ...legend), points(basis, cost, places),
    el('p', { class: 'note' }, 'Markers: strategies; bars: 95 % of new seeds. A logarithmic axis where costs lie far apart.'));
}

function points(basis, cost, places) {
  const gain = column('gain');
  const xs = places.map((i) => get(cost.key, i));
  const reach = places.flatMap((i) => [get('gain', i), get('low', i), get('high', i)]).filter((value) => value !== null);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(0, ...reach), Math.max(0, ...reach)];
  const wide = Math.min(960, Math.max(340, $('charts').clientWidth)); // a unit is a pixel, so letters keep their size
  const logarithmic = left > 0 && right > 30 * left;
  const scaled = (x) => (logarithmic ? Math.log(x) : x);
  const across = (x) => (60 + ((wide - 80) * (scaled(x) - scaled(left))) / (scaled(right) - scaled(left) || 1)).toFixed(1);
  const down = (y) => (300 - (280 * (y - low)) / (high - low || 1)).toFixed(1);
  const said = (x, y, side, words) => svg('text', { x, y, class: side }, words);
  const marks = places.map((i) => {
    const at = [across(get(cost.key, i)), down(get('gain', i))];
    const bar = get('low', i) === null ? null
      : svg('path', { class: 'whisker', d: `M${at[0]} ${down(get('low', i))}V${down(get('high', i))}` });
    const dot = svg('path', { class: 'dot', d: outline(get('strategy', i)), transform: `translate(${at.join(' ')})` });
    return svg('g', { class: data.looks[get('strategy', i)] }, svg('title', {}, spoken(i, cost)), bar, dot);
  });
  const words = `${count(places.length)} rows, gains from ${text(gain, Math.min(...places.map((i) => get('gain', i))))} to `
    + `${text(gain, Math.max(...places.map((i) => get('gain', i))))}, ${cost.label} from ${text(cost, left)} to ${text(cost, right)}`;
  return svg('svg', { viewBox: `0 0 ${wide} 340`, role: 'img', 'aria-label': `${basis}: ${words}`, class: 'plot wide' },
    svg('path', { class: 'zero', d: `M50 ${down(0)}H${wide - 10}` }), ...marks,
    ...[...new Set([low, 0, high])].map((y) => said(44, Number(down(y)) + 4, 'end', text(gain, y))),
    said(60, 326, 'start', text(cost, left)), said(wide - 20, 326, 'end', right > left ? text(cost, right) : ''),
    said(wide / 2 + 20, 326, 'middle', `${cost.label}${logarithmic ? ', logarithmic' : ''}`));
}

function spoken(i, cost) {
  const pair = get('level', i) === 'pair' ? `, ${get('origin', i)} → ${get('receiving', i)}, ${get('relation', i)}` : '';
  const where = `${get('study', i)}: ${get('method', i)}, ${get('strategy', i)}${pair}, ${get('budget', i)} updates`;
  const between = get('low', i) === null ? '' : ` [${text(column('low'), get('low', i))}, ${text(column('high'), get('high', i))}]`;
  return `${where}: ${get('arm', i)} less ${get('against', i)} ${text(column('gain'), get('gain', i))}${between}; ${cost.label} ${text(cost, get(cost.key, i))}`;
}

$('grid').addEventListener('drawn', drawCharts);
$('cost').addEventListener('input', drawCharts);
addEventListener('resize', drawCharts);
begin();
