// The table of cells: filters, sorting, paging, CSV, and a URL that holds the view. The dialog of a run is in run.js.

const PAGE = 50; // rows drawn at once
const data = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);
const shown = data.columns.filter((column) => column.shown);
const filters = data.columns.filter((column) => column.filter);
const size = data.cells.status.codes.length;
const view = { filters: {}, q: '', sort: '', down: false, page: 0, run: '' };
let rows = []; // places of the cells that pass the filters, in the order shown

// ---- small tools

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const count = (number) => number.toLocaleString('en');

function get(key, i) {
  const column = data.cells[key];
  return column.words ? column.words[column.codes[i]] : column[i];
}

function text(column, value, more = 0) {
  if (value === null || value === undefined || value === '') return '–';
  if (column.kind !== 'number') return String(value);
  const number = value * column.scale;
  return (column.signed && number >= 0 ? '+' : '') + number.toFixed(column.digits + more).replace('-', '−');
}

function options(column) {
  const found = data.cells[column.key];
  return found.words ?? [...new Set(found)].filter((value) => value !== null).sort((a, b) => a - b).map(String);
}

// ---- which rows, in which order

let haystacks = null;

function haystack(i) {
  const texts = data.columns.filter((column) => column.kind !== 'number');
  haystacks ??= Array.from({ length: size }, (_, row) => texts.map((column) => get(column.key, row)).join('\n').toLowerCase());
  return haystacks[i];
}

function passing() {
  const wanted = Object.entries(view.filters).map(([key, value]) => {
    const column = data.cells[key];
    return column.words ? [column.codes, column.words.indexOf(value)] : [column, Number(value)];
  });
  const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (let i = 0; i < size; i++) {
    const there = wanted.every(([values, value]) => values[i] === value);
    if (there && words.every((word) => haystack(i).includes(word))) found.push(i);
  }
  return found;
}

function sorted(found) {
  if (!view.sort) return found;
  const column = data.cells[view.sort];
  let keys = column;
  if (column.words) {
    const order = [...column.words].sort(new Intl.Collator('en', { numeric: true }).compare);
    const rank = new Map(order.map((word, place) => [word, place]));
    keys = column.codes.map((code) => rank.get(column.words[code]));
  }
  const sign = view.down ? -1 : 1;
  return found.sort((a, b) => { // what has no number stays at the end; equal rows stay in their order
    if (keys[a] === null || keys[b] === null) return (keys[a] === null) - (keys[b] === null) || a - b;
    return sign * (keys[a] - keys[b]) || a - b;
  });
}

// ---- drawing

function drawFilters() {
  const fields = filters.map((column) => {
    const choices = options(column).map((value) => el('option', { value }, value));
    const select = el('select', { id: `f-${column.key}`, name: column.key }, el('option', { value: '' }, 'all'), ...choices);
    return el('div', {}, el('label', { for: `f-${column.key}` }, column.label), select);
  });
  const hint = 'any words, or a run’s name';
  const search = el('input', { type: 'search', id: 'f-q', name: 'q', autocomplete: 'off', placeholder: hint });
  fields.push(el('div', { class: 'wide' }, el('label', { for: 'f-q' }, 'text'), search));
  $('filters').replaceChildren(...fields);
}

function drawHead() {
  const heads = shown.map((column) => {
    const button = el('button', { type: 'button', 'data-sort': column.key }, column.label);
    const look = column.kind === 'text' ? null : column.label.length > 18 ? 'number long' : 'number';
    return el('th', { scope: 'col', 'data-key': column.key, class: look }, button);
  });
  $('grid').tHead.replaceChildren(el('tr', {}, el('th', { scope: 'col' }, 'run'), ...heads));
}

function label(i) {
  const seed = get('seed', i) === null ? 'no seed' : `seed ${get('seed', i)}`;
  const set = data.cells.data.words.length > 1 ? ` (${get('data', i)})` : '';
  const pair = `${get('origin', i)} → ${get('receiving', i)}${set}`;
  return [get('method', i), pair, get('relation', i), get('init', i), seed, `${get('budget', i)} updates`].join(', ');
}

function drawRow(i) {
  const run = get('run_id', i);
  const open = el('button', { type: 'button', 'data-run': run, 'aria-label': `Open run ${run}: ${label(i)}` }, run.slice(0, 8));
  const fields = shown.map((column) => {
    const value = text(column, get(column.key, i));
    if (column.key !== 'status') return el('td', { class: column.kind === 'text' ? null : 'number' }, value);
    return el('td', {}, el('span', { class: `status is-${value}`, title: get('reason', i) }, value));
  });
  return el('tr', {}, el('th', { scope: 'row' }, open), ...fields);
}

function draw() {
  rows = sorted(passing());
  const last = Math.max(0, Math.ceil(rows.length / PAGE) - 1);
  view.page = Math.min(view.page, last);
  const from = view.page * PAGE;
  const here = rows.slice(from, from + PAGE);
  for (const head of $('grid').tHead.querySelectorAll('[data-key]')) {
    head.toggleAttribute('aria-sort', head.dataset.key === view.sort);
    if (head.dataset.key === view.sort) head.setAttribute('aria-sort', view.down ? 'descending' : 'ascending');
  }
  const none = el('tr', {}, el('td', { colspan: shown.length + 1, class: 'empty' }, 'No cell passes these filters.'));
  $('grid').tBodies[0].replaceChildren(...(here.length ? here.map(drawRow) : [none]));
  $('shown').textContent = `${count(rows.length)} of ${count(size)} rows`;
  $('place').textContent = here.length ? `rows ${count(from + 1)} to ${count(from + here.length)}` : '';
  $('back').disabled = view.page === 0;
  $('on').disabled = view.page === last;
}

// ---- the view in the URL

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

function restore() {
  const hash = location.hash.slice(1);
  const words = new URLSearchParams(hash.includes('=') ? hash : '');
  const run = words.get('run') ?? '';
  const before = address('');
  if (hash.includes('=')) {
    const known = filters.filter((column) => options(column).includes(words.get(column.key)));
    const key = (words.get('sort') ?? '').replace(/^-/, '');
    view.filters = Object.fromEntries(known.map((column) => [column.key, words.get(column.key)]));
    view.q = words.get('q') ?? '';
    view.sort = shown.some((column) => column.key === key) ? key : '';
    view.down = (words.get('sort') ?? '').startsWith('-');
    view.page = Math.max(0, (Number.parseInt(words.get('page'), 10) || 1) - 1);
    for (const column of filters) $(`f-${column.key}`).value = view.filters[column.key] ?? '';
    $('f-q').value = view.q;
    if (address('') !== before) draw(); // else the row that opened a run would lose the focus it is to get back
  }
  view.run = run;
  showRun(run);
}

function change(changes) {
  Object.assign(view, changes);
  draw();
  keep();
}

function open(run) {
  clearTimeout(waiting);
  view.run = run;
  history.pushState(null, '', `#${address(run)}`); // a new place in the history: the browser's Back returns to the run before
  showRun(run); // at once: a place put there by the page itself tells nobody
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

async function copy(value, said) {
  try {
    await navigator.clipboard.writeText(value);
    said('copied');
  } catch {
    said('the browser refused to copy');
  }
}

function save() {
  const href = URL.createObjectURL(new Blob([csv()], { type: 'text/csv' }));
  const link = el('a', { href, download: `${data.study}-cells.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

// ---- start

function start() {
  drawFilters();
  drawHead();
  draw();
  $('browser').hidden = false;
  $('filters').addEventListener('input', () => {
    const chosen = filters.map((column) => [column.key, $(`f-${column.key}`).value]).filter(([, value]) => value !== '');
    change({ filters: Object.fromEntries(chosen), q: $('f-q').value, page: 0 });
  });
  $('filters').addEventListener('submit', (event) => event.preventDefault());
  $('clear').addEventListener('click', () => { $('filters').reset(); change({ filters: {}, q: '', page: 0 }); });
  const say = (said) => { $('shown').textContent = `${count(rows.length)} rows: ${said}`; };
  $('copy').addEventListener('click', () => copy(csv(), say));
  $('save').addEventListener('click', save);
  $('back').addEventListener('click', () => change({ page: view.page - 1 }));
  $('on').addEventListener('click', () => change({ page: view.page + 1 }));
  $('grid').addEventListener('click', (event) => {
    const key = event.target.dataset.sort;
    if (key) change({ sort: key, down: view.sort === key && !view.down, page: 0 });
    const row = event.target.closest('tbody tr')?.querySelector('[data-run]');
    if (row && !String(getSelection())) { row.focus(); open(row.dataset.run); }
  });
  prepareRun();
  addEventListener('hashchange', restore);
  if (location.hash.includes('=')) $('cells').scrollIntoView();
  restore();
}

addEventListener('DOMContentLoaded', start); // a module runs before it, and chart.js and run.js follow
