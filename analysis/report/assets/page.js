// The table of cells (filters, sorting, pages, CSV) and the dialog of one run; the address holds the view.

const PAGE = 50; // rows drawn at once
const data = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);
const shown = data.columns.filter((column) => column.shown);
const filters = data.columns.filter((column) => column.options);
const size = data.cells.status.codes.length;
const view = { filters: {}, q: '', sort: '', down: false, page: 0, run: '' };
let rows = []; // places of the cells that pass the filters, in the order shown

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) =>
  filled(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
const count = (number) => number.toLocaleString('en');

function get(key, i) {
  const column = data.cells[key];
  return column.words ? column.words[column.codes[i]] : column[i];
}

function text(column, value) {
  if (value === null || value === '') return '–';
  if (column.kind !== 'number') return String(value);
  const number = value * column.scale;
  return (column.signed && number >= 0 ? '+' : '') + number.toFixed(column.digits).replace('-', '−');
}

function label(i) {
  const seed = get('seed', i) === null ? 'no seed' : `seed ${get('seed', i)}`;
  const set = data.cells.data.words.length > 1 ? ` (${get('data', i)})` : '';
  const pair = `${get('origin', i)} → ${get('receiving', i)}${set}`;
  return [get('method', i), pair, get('relation', i), get('init', i), seed, `${get('budget', i)} updates`].join(', ');
}

// ---- which rows, in which order

let haystacks = null;

function passing() {
  const wanted = Object.entries(view.filters).map(([key, value]) => {
    const column = data.cells[key];
    return column.words ? [column.codes, column.words.indexOf(value)] : [column, Number(value)];
  });
  const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
  const every = Array.from({ length: size }, (_, i) => i);
  const texts = data.columns.filter((column) => column.kind !== 'number');
  if (words.length) haystacks ??= every.map((i) => texts.map(({ key }) => get(key, i)).join('\n').toLowerCase());
  return every.filter((i) => wanted.every(([values, value]) => values[i] === value)
    && words.every((word) => haystacks[i].includes(word)));
}

function sorted(found) {
  if (!view.sort) return found;
  const column = data.cells[view.sort];
  const order = [...(column.words ?? [])].sort(new Intl.Collator('en', { numeric: true }).compare);
  const rank = new Map(order.map((word, place) => [word, place]));
  const keys = column.words ? column.codes.map((code) => rank.get(column.words[code])) : column;
  const sign = view.down ? -1 : 1;
  return found.sort((a, b) => { // what has no number stays at the end; equal rows stay in their order
    if (keys[a] === null || keys[b] === null) return (keys[a] === null) - (keys[b] === null) || a - b;
    return sign * (keys[a] - keys[b]) || a - b;
  });
}

// ---- drawing

function drawRow(i) {
  const run = get('run_id', i);
  const name = `Open run ${run}: ${label(i)}`;
  const fields = shown.map((column) => {
    const value = text(column, get(column.key, i));
    if (column.key !== 'status') return el('td', { class: column.kind === 'text' ? null : 'number' }, value);
    return el('td', {}, el('span', { class: `status is-${value}`, title: get('reason', i) }, value));
  });
  const open = el('button', { type: 'button', 'data-run': run, 'aria-label': name }, run.slice(0, 8));
  return el('tr', {}, el('th', { scope: 'row' }, open), ...fields);
}

function draw() {
  rows = sorted(passing());
  const last = Math.max(0, Math.ceil(rows.length / PAGE) - 1);
  view.page = Math.min(view.page, last);
  const from = view.page * PAGE;
  const here = rows.slice(from, from + PAGE);
  for (const head of $('grid').tHead.querySelectorAll('[data-key]')) {
    if (head.dataset.key === view.sort) head.setAttribute('aria-sort', view.down ? 'descending' : 'ascending');
    else head.removeAttribute('aria-sort');
  }
  const none = el('tr', {}, el('td', { colspan: shown.length + 1, class: 'empty' }, 'No cell passes these filters.'));
  $('grid').tBodies[0].replaceChildren(...(here.length ? here.map(drawRow) : [none]));
  $('shown').textContent = `${count(rows.length)} of ${count(size)} rows`;
  $('place').textContent = here.length ? `rows ${count(from + 1)} to ${count(from + here.length)}` : '';
  $('back').disabled = view.page === 0;
  $('on').disabled = view.page === last;
}

// ---- the view in the address

function address(run) {
  const words = new URLSearchParams(view.filters);
  if (view.q) words.set('q', view.q);
  if (view.sort) words.set('sort', (view.down ? '-' : '') + view.sort);
  if (view.page) words.set('page', view.page + 1);
  if (run) words.set('run', run);
  return String(words);
}

let waiting = 0;

function keep() { // not at every key: browsers limit how often an address may change
  clearTimeout(waiting);
  waiting = setTimeout(() => history.replaceState(null, '', `#${address(view.run) || 'cells'}`), 150);
}

function chosen() {
  const values = filters.map(({ key }) => [key, $(`f-${key}`).value]).filter(([, value]) => value);
  return { filters: Object.fromEntries(values), q: $('f-q').value };
}

function restore() {
  const hash = location.hash.slice(1);
  const words = new URLSearchParams(hash.includes('=') ? hash : '');
  if (hash.includes('=')) {
    const before = address('');
    const sort = words.get('sort') ?? '';
    const key = sort.replace(/^-/, '');
    for (const column of filters) $(`f-${column.key}`).value = words.get(column.key) ?? ''; // '' where it is unknown
    $('f-q').value = words.get('q') ?? '';
    const page = Math.max(0, (Number.parseInt(words.get('page'), 10) || 1) - 1);
    const known = shown.some((column) => column.key === key);
    Object.assign(view, chosen(), { sort: known ? key : '', down: sort.startsWith('-'), page });
    if (address('') !== before) draw(); // else the row that opened a run would lose the focus it is to get back
  }
  view.run = words.get('run') ?? '';
  showRun();
}

function change(changes) {
  Object.assign(view, changes);
  draw();
  keep();
}

function open(run) {
  clearTimeout(waiting);
  view.run = run;
  history.pushState(null, '', `#${address(run)}`); // the browser's Back returns to the run before
  showRun();
}

// ---- CSV

function field(value) {
  let out = value === null ? '' : String(value);
  if (typeof value === 'string' && /^[=+\-@\t\r]/.test(out)) out = `'${out}`; // a text is no formula
  return /[",\r\n]/.test(out) ? `"${out.replaceAll('"', '""')}"` : out;
}

function csv() {
  const keys = data.columns.map((column) => column.key);
  return [keys, ...rows.map((i) => keys.map((key) => get(key, i)))].map((row) => row.map(field).join(',')).join('\n') + '\n';
}

function copy(value, said) {
  navigator.clipboard.writeText(value).then(() => said('copied'), () => said('the browser refused to copy'));
}

function save() {
  const href = URL.createObjectURL(new Blob([csv()], { type: 'text/csv' }));
  el('a', { href, download: `${data.study}-cells.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

// ---- the dialog of a run

function showRun() {
  const box = $('run');
  const cells = view.run ? Array.from({ length: size }, (_, i) => i).filter((i) => get('run_id', i) === view.run) : [];
  if (!cells.length && !data.runs[view.run]) {
    view.run = '';
    if (box.open) box.close();
    return;
  }
  $('sheet').replaceChildren(...sheet(view.run, cells).filter(Boolean));
  if (!box.open) box.showModal();
  box.scrollTop = 0;
  $('h-run').focus();
}

function sheet(id, cells) {
  const known = data.runs[id];
  const why = `The page describes no runs, because the study has ${count(data.total)}; this one’s record is in its folder.`;
  const run = known ?? { title: label(cells[0]), where: '', state: get('status', cells[0]) };
  return [
    el('header', {},
      el('button', { type: 'button', class: 'close', 'data-close': 'yes', 'aria-label': 'Close' }, '×'),
      el('p', { class: 'eyebrow' }, 'Run ', el('code', {}, id)),
      el('h2', { id: 'h-run', tabindex: -1 }, run.title),
      el('p', { class: 'sub' }, run.where, ' ', el('span', { class: `status is-${run.state}` }, run.state))),
    related(id, run, cells),
    known ? null : el('p', { class: 'quiet' }, why),
    run.error ? el('pre', { class: 'error', tabindex: 0 }, run.error) : null,
    run.curve ? curves(run, cells) : null,
    ...(run.sections ?? []).map(section),
    cells.length ? folded(`Read by ${count(cells.length)} cell${cells.length === 1 ? '' : 's'} of the grid`, readBy(cells)) : null,
    run.command ? command(run.command) : null,
    run.settings ? folded('Configuration and machine',
      ...run.settings.flatMap(([name, place]) => [el('h4', {}, name), facts(data.parts[place])])) : null,
  ];
}

const folded = (words, ...children) => el('details', {}, el('summary', {}, words), ...children);
const facts = (pairs) => el('dl', { class: 'facts' },
  ...pairs.map(([key, value]) => el('div', {}, el('dt', {}, key), el('dd', {}, value))));

function section({ title, name, note, facts: pairs, head, rows: lines }) {
  return el('section', {}, el('h3', {}, title), note ? el('p', { class: 'quiet' }, note) : null,
    pairs ? facts(pairs) : null, head ? table(name, head, lines) : null);
}

function entry(words) {
  const look = { '✓': 'right', '✗': 'wrong' }[words.at(-1)];
  if (!look) return el('td', {}, words);
  return el('td', { class: look }, words.slice(0, -1), el('span', { role: 'img', 'aria-label': look }, words.at(-1)));
}

function table(name, head, lines) {
  const heads = head.map((word, i) => el('th', { scope: 'col', class: i ? 'number' : null }, word));
  const body = lines.map(([first, ...rest]) => el('tr', {}, el('th', { scope: 'row' }, first), ...rest.map(entry)));
  return el('div', { class: 'box', tabindex: 0, role: 'group', 'aria-label': name },
    el('table', { 'aria-label': name }, el('thead', {}, el('tr', {}, ...heads)), el('tbody', {}, ...body)));
}

function related(id, run, cells) {
  const links = [['Origin', run.origin], ...(cells.length ? [['Native', get('native_id', cells[0])], ['Bare host', get('bare_id', cells[0])]] : [])];
  const buttons = links.filter(([, other]) => other && other !== id).map(([name, other]) => {
    const score = data.runs[other]?.score ? `, ${data.metric.label.split(',')[0]} ${data.runs[other].score}` : '';
    return el('button', { type: 'button', 'data-run': other }, el('strong', {}, name), el('small', {}, other.slice(0, 8) + score));
  });
  const starts = Object.entries(data.runs).filter(([, other]) => other.origin === id);
  const lines = starts.map(([other, { title, where }]) => el('li', {},
    el('button', { type: 'button', class: 'link', 'data-run': other }, `${title}, ${where}`)));
  const more = lines.length ? folded(`${count(lines.length)} runs start from this one`, el('ul', {}, ...lines)) : null;
  if (!buttons.length && !more) return null;
  return el('nav', { class: 'related', 'aria-label': 'Related runs' }, el('div', { class: 'buttons' }, ...buttons), more);
}

function readBy(cells) {
  const why = (i) => (get('reason', i) ? ` (${get('reason', i)})` : '');
  return el('ul', {}, ...cells.map((i) => el('li', {}, `${label(i)}: ${text(data.metric, get(data.metric.key, i))}${why(i)}`)));
}

function command(words) {
  const folder = words.includes('=PATH') ? ' PATH stands for a folder, which the study does not name.' : '';
  return el('section', {}, el('h3', {}, 'Make it again'), el('pre', { tabindex: 0 }, el('code', {}, words)),
    el('button', { type: 'button', 'data-copy': words }, 'Copy the command'),
    el('p', { class: 'quiet' }, 'It carries out this run, with the runs it starts from or is compared with. A run is named by '
      + 'all its settings: where the study’s command said more than its sweep, say it here too, else the command finds no '
      + `such run and stops.${folder}`));
}

function curves(run, cells) {
  const references = ['native', 'bare'].map((name) => [name, cells.length ? get(name, cells[0]) : null])
    .filter(([, value]) => value !== null).map(([name, value]) => [name, value * data.metric.scale]);
  const init = cells.length ? get('init', cells[0]) : '';
  const [updates, losses, all] = run.loss;
  const some = all > losses.length ? ` (${losses.length} of ${count(all)} points)` : '';
  return el('div', { class: 'pair' }, curve(data.metric.label, run.curve, references, data.looks[init]),
    all ? curve(`training loss, nats${some}`, [updates, losses], [], data.looks[init]) : null);
}

function curve(title, [place, ys], references, look) { // from the first to the last update, the least to the largest value
  const xs = data.parts[place];
  const points = xs.map((x, i) => [x, ys[i]]).filter(([, y]) => y !== null);
  const words = [title, ...references.map(([name, value]) => `${name} ${value.toPrecision(4)}`)].join('; ');
  if (!points.length) return el('figure', {}, el('figcaption', {}, words), el('p', { class: 'quiet' }, 'No finite number.'));
  const values = [...points.map(([, y]) => y), ...references.map(([, value]) => value)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const across = (x) => (48 + (298 * (x - xs[0])) / (xs.at(-1) - xs[0] || 1)).toFixed(1);
  const down = (y) => (160 - (146 * (y - low)) / (high - low || 1)).toFixed(1);
  const said = (x, y, side, value) => svg('text', { x, y, class: side }, value);
  const path = points.map(([x, y], i) => `${i ? 'L' : 'M'}${across(x)} ${down(y)}`).join('');
  const levels = references.map(([name, value]) => svg('g', { class: name }, svg('path', { class: 'line', d: `M48 ${down(value)}H346` })));
  const spoken = `${words}: ${points[0][1].toPrecision(4)} at ${points[0][0]} updates, ${points.at(-1)[1].toPrecision(4)} at ${points.at(-1)[0]}`;
  return el('figure', {}, el('figcaption', {}, words),
    svg('svg', { viewBox: '0 0 360 196', role: 'img', 'aria-label': spoken, class: `plot ${look ?? 's7'}` }, ...levels,
      svg('path', { class: 'line', d: path }), said(42, 18, 'end', high.toPrecision(3)), said(42, 164, 'end', low.toPrecision(3)),
      said(48, 178, 'start', count(xs[0])), said(346, 178, 'end', `${count(xs.at(-1))} updates`)));
}

// ---- start

draw();
$('browser').hidden = false;
$('filters').addEventListener('input', () => change({ ...chosen(), page: 0 }));
$('filters').addEventListener('submit', (event) => event.preventDefault());
$('clear').addEventListener('click', () => { $('filters').reset(); change({ filters: {}, q: '', page: 0 }); });
$('copy').addEventListener('click', () => copy(csv(), (said) => { $('shown').textContent = `${count(rows.length)} rows: ${said}`; }));
$('save').addEventListener('click', save);
$('back').addEventListener('click', () => change({ page: view.page - 1 }));
$('on').addEventListener('click', () => change({ page: view.page + 1 }));
$('grid').addEventListener('click', (event) => {
  const key = event.target.dataset.sort;
  if (key) change({ sort: key, down: view.sort === key && !view.down, page: 0 });
  const row = event.target.closest('tbody tr')?.querySelector('[data-run]');
  if (row && !String(getSelection())) { row.focus(); open(row.dataset.run); }
});
$('run').addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (event.target === $('run') || button?.dataset.close) $('run').close();
  if (button?.dataset.run) open(button.dataset.run);
  if (button?.dataset.copy) copy(button.dataset.copy, (said) => { button.textContent = said; });
});
$('run').addEventListener('close', () => { if (view.run) { view.run = ''; keep(); } });
addEventListener('hashchange', restore);
if (location.hash.includes('=')) $('cells').scrollIntoView();
restore();
