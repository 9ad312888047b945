// The table of a page: filters, sorting, pages, CSV; the address holds the view. The page's own script follows, says how
// a row is drawn (drawRow), hears of 'drawn' and 'restored' on the table, and calls begin().

const PAGE = 50; // rows drawn at once
const data = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);
const shown = data.columns.filter((column) => column.shown);
const filters = data.columns.filter((column) => column.options);
const [first] = Object.values(data.cells);
const size = (first.codes ?? first).length;
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
  const none = el('tr', {}, el('td', { colspan: shown.length + 1, class: 'empty' }, 'No row passes these filters.'));
  $('grid').tBodies[0].replaceChildren(...(here.length ? here.map(drawRow) : [none]));
  $('shown').textContent = `${count(rows.length)} of ${count(size)} rows`;
  $('place').textContent = here.length ? `rows ${count(from + 1)} to ${count(from + here.length)}` : '';
  $('back').disabled = view.page === 0;
  $('on').disabled = view.page === last;
  $('grid').dispatchEvent(new Event('drawn'));
}

// ---- the view in the address

// what a filter is set to before a reader touches it: '' is all
const usual = (key) => [...$(`f-${key}`).options].find((option) => option.defaultSelected)?.value ?? '';

function address(run) {
  const words = new URLSearchParams(filters.map(({ key }) => [key, view.filters[key] ?? ''])
    .filter(([key, value]) => value !== usual(key)));
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
    for (const { key: name } of filters) $(`f-${name}`).value = words.get(name) ?? usual(name); // '' where it is unknown
    $('f-q').value = words.get('q') ?? '';
    const page = Math.max(0, (Number.parseInt(words.get('page'), 10) || 1) - 1);
    const known = shown.some((column) => column.key === key);
    Object.assign(view, chosen(), { sort: known ? key : '', down: sort.startsWith('-'), page });
    if (address('') !== before) draw(); // else the row that opened a run would lose the focus it is to get back
  }
  view.run = words.get('run') ?? '';
  $('grid').dispatchEvent(new Event('restored'));
}

function change(changes) {
  Object.assign(view, changes);
  draw();
  keep();
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
  el('a', { href, download: data.file }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

// ---- start

function begin() {
  $('browser').hidden = false;
  Object.assign(view, chosen());
  draw();
  $('filters').addEventListener('input', () => change({ ...chosen(), page: 0 }));
  $('filters').addEventListener('submit', (event) => event.preventDefault());
  $('clear').addEventListener('click', () => { $('filters').reset(); change({ ...chosen(), page: 0 }); });
  $('copy').addEventListener('click', () => copy(csv(), (said) => { $('shown').textContent = `${count(rows.length)} rows: ${said}`; }));
  $('save').addEventListener('click', save);
  $('back').addEventListener('click', () => change({ page: view.page - 1 }));
  $('on').addEventListener('click', () => change({ page: view.page + 1 }));
  $('grid').addEventListener('click', (event) => {
    const key = event.target.dataset.sort;
    if (key) change({ sort: key, down: view.sort === key && !view.down, page: 0 });
  });
  addEventListener('hashchange', restore);
  if (location.hash.includes('=')) $('cells').scrollIntoView();
  restore();
}
