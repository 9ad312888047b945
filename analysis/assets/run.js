// The dialog of one run: its curve, what was carried into it, predictions, configuration, command, and related runs.

const SVG = 'http://www.w3.org/2000/svg';
const part = (place) => data.parts[place];
const main = data.metrics.find((column) => column.key === data.metric);
const place = data.metrics.indexOf(main);

function exact(value, digits = 3) {
  return value === null || value === undefined ? '–' : value.toLocaleString('en', { maximumSignificantDigits: digits });
}

const SHARES = {
  carried_fraction: 'of the origin’s tensors', carried_entries_fraction: 'of its parameters',
  carried_norm_fraction: 'of its squared norm', filled_fraction: 'of this module filled',
};

// ---- opening and closing

function prepareRun() {
  const box = $('run');
  box.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (event.target === box || button?.dataset.close) box.close();
    if (button?.dataset.run) open(button.dataset.run);
    if (button?.dataset.copy) copy(button.dataset.copy, (said) => { button.textContent = said; });
  });
  box.addEventListener('close', () => {
    if (view.run) { view.run = ''; keep(); }
  });
}

function showRun(run) {
  const box = $('run');
  const cells = run ? Array.from({ length: size }, (_, i) => i).filter((i) => get('run_id', i) === run) : [];
  if (!run || !(cells.length || data.runs[run])) {
    view.run = '';
    if (box.open) box.close();
    return;
  }
  $('sheet').replaceChildren(...sheet(run, cells));
  if (!box.open) box.showModal();
  box.scrollTop = 0;
  $('h-run').focus();
}

// ---- the sheet

function sheet(id, cells) {
  const run = data.runs[id];
  const about = describe(run, cells);
  const state = run?.state ?? get('status', cells[0]);
  const head = el('header', {},
    el('button', { type: 'button', class: 'close', 'data-close': 'yes', 'aria-label': 'Close' }, '×'),
    el('p', { class: 'eyebrow' }, 'Run ', el('code', {}, id)),
    el('h2', { id: 'h-run', tabindex: -1 }, about.title),
    el('p', { class: 'sub' }, about.where, ' ', el('span', { class: `status is-${state}` }, state)));
  const top = [head, related(id, run, cells)];
  const command = run?.command ? section('Make it again', ...commandOf(run.command)) : null;
  if (!run) {
    const why = `The page describes no runs, because the study has ${count(data.total)}; this one’s record is in its folder.`;
    return [...top, readBy(cells), el('p', { class: 'quiet' }, why)].filter(Boolean);
  }
  if (state !== 'done') {
    return [...top, el('pre', { class: 'error', tabindex: 0 }, run.error), readBy(cells), command].filter(Boolean);
  }
  const found = [curves(run, cells), measured(run), port(run), predictions(run), cost(run)];
  return [...top, ...found, readBy(cells), command, configuration(run)].filter(Boolean);
}

function section(title, ...children) {
  return el('section', {}, el('h3', {}, title), ...children);
}

function describe(run, cells) {
  const cell = run?.state === 'done' ? part(run.cell) : null;
  if (cell?.host) {
    const seed = run.seed === null ? 'no seed' : `seed ${run.seed}`;
    const from = cell.origin ? `${cell.origin.host} (${cell.origin.data}) → ` : '';
    const title = cell.method ? `${cell.method}, ${cell.init}` : 'bare host';
    return { title, where: `${from}${cell.host} (${cell.data}), ${seed}` };
  }
  if (!cells.length) return { title: 'A run that no cell reads', where: '' };
  return { title: `${get('method', cells[0])}, ${get('init', cells[0])}`, where: label(cells[0]) };
}

function related(id, run, cells) {
  const links = [['Origin', run?.origin]];
  if (cells.length) links.push(['Native', get('native_id', cells[0])], ['Bare host', get('bare_id', cells[0])]);
  const buttons = links.filter(([, other]) => other && other !== id).map(([name, other]) => {
    const metrics = data.runs[other]?.metrics;
    const score = metrics ? `, ${main.label.split(',')[0]} ${text(main, metrics.at(-1)[place])}` : '';
    const small = el('small', {}, `${other.slice(0, 8)}${score}`);
    return el('button', { type: 'button', 'data-run': other }, el('strong', {}, name), small);
  });
  const starts = Object.entries(data.runs).filter(([, other]) => other.origin === id);
  const lines = starts.map(([other, found]) => el('li', {}, el('button', { type: 'button', class: 'link', 'data-run': other },
    `${describe(found, []).title}, ${part(found.cell).host ?? ''}`)));
  const words = `${count(lines.length)} runs start from this one`;
  const more = lines.length ? el('details', {}, el('summary', {}, words), el('ul', {}, ...lines)) : null;
  if (!buttons.length && !more) return null;
  return el('nav', { class: 'related', 'aria-label': 'Related runs' }, el('div', { class: 'buttons' }, ...buttons), more);
}

function readBy(cells) {
  if (!cells.length) return null;
  const why = (i) => (get('reason', i) ? ` (${get('reason', i)})` : '');
  const lines = cells.map((i) => el('li', {}, `${label(i)}: ${text(main, get(data.metric, i))}${why(i)}`));
  const words = `Read by ${count(cells.length)} cell${cells.length === 1 ? '' : 's'} of the grid`;
  return el('details', {}, el('summary', {}, words), el('ul', {}, ...lines));
}

// ---- numbers

function curves(run, cells) {
  const marks = part(run.marks);
  const scale = (value) => (value === null ? null : value * main.scale);
  const lines = [];
  for (const [name, kind] of [['native', 'dashed'], ['bare', 'dotted']]) {
    const value = cells.length ? get(name, cells[0]) : null;
    const words = name === 'bare' ? 'bare host' : name;
    if (value !== null) lines.push({ name: `${words} ${text(main, value)}`, kind, level: scale(value) });
  }
  const look = data.looks[part(run.cell).init] ?? data.looks[cells.length ? get('init', cells[0]) : ''];
  const pictures = [chart(main.label, marks, run.metrics.map((row) => scale(row[place])), lines, look)];
  const { updates, values, of } = run.loss;
  const some = of > values.length ? ` (${values.length} of ${count(of)} points)` : '';
  if (of) pictures.push(chart(`training loss, nats${some}`, part(updates), values, [], look));
  return el('div', { class: 'pair' }, ...pictures);
}

function table(name, head, body) {
  const heads = el('tr', {}, ...head.map((word, i) => el('th', { scope: 'col', class: i ? 'number' : null }, word)));
  const lines = body.map(([first, ...rest]) => el('tr', {}, el('th', { scope: 'row' }, first),
    ...rest.map((value) => (value instanceof Node ? value : el('td', {}, value)))));
  const inner = el('table', { 'aria-label': name }, el('thead', {}, heads), el('tbody', {}, ...lines));
  return el('div', { class: 'box', tabindex: 0, role: 'group', 'aria-label': name }, inner);
}

const atMark = (mark) => (mark ? `${count(mark)} updates` : 'zero-shot');

function measured(run) {
  const marks = part(run.marks);
  const body = data.metrics.map((column, i) => [column.label, ...run.metrics.map((row) => text(column, row[i], 1))]);
  return section('At its marks', table('Metrics at the marks', ['metric', ...marks.map(atMark)], body));
}

function facts(pairs) {
  return el('dl', { class: 'facts' }, ...pairs.map(([key, value]) => el('div', {}, el('dt', {}, key), el('dd', {}, value))));
}

function extraction(found) {
  const lists = (at) => Object.entries(part(at)).map(([stack, layers]) => `${stack} ${layers.join(', ')}`).join('; ');
  return section('What was cut out of the other host', facts([['seed examples', count(found.seed_count)],
    ['layers it comes from', lists(found.layers)], ['shared tokens', exact(found.shared_tokens, 9)],
    ['seconds', exact(found.seconds)]]));
}

function port(run) {
  if (!run.port) return null;
  if ('seed_count' in run.port) return extraction(run.port);
  const { layer_map: map, actions, name, strategy, seconds, calibration_examples: examples, ...rest } = run.port;
  const shares = Object.entries(SHARES).filter(([key]) => key in rest).map(([key, words]) => el('div', {},
    el('span', {}, words),
    svg('svg', { viewBox: '0 0 1 1', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      svg('rect', { width: rest[key] ?? 0, height: 1 })),
    el('b', {}, rest[key] === null ? '–' : `${(100 * rest[key]).toFixed(1)} %`)));
  const parts = Object.entries(part(actions)).map(([action, number]) => `${action} ${number}`).join(', ');
  const origin = data.runs[run.origin];
  const depths = origin?.spec?.host === undefined ? {} : part(origin.spec.host).shape.layers;
  const maps = Object.entries(part(map)).map(([stack, layers]) =>
    layerMap(stack, layers, depths[stack] ?? 1 + Math.max(...layers.flat())));
  return section('What was carried into it',
    facts([['port', name === strategy ? name : `${name} (${strategy})`], ['tensors', parts], ['seconds', exact(seconds)],
      ['calibration examples', count(examples)]]),
    el('div', { class: 'shares' }, ...shares), el('div', { class: 'pair' }, ...maps));
}

function predictions(run) {
  const found = run.predictions;
  if (found.fault) return section('Predictions', el('p', { class: 'quiet' }, found.fault));
  if (found.scores) return answers(run, found);
  const [labels, invalid] = [part(found.labels), part(found.invalid)];
  const words = run.spec.task === undefined ? ['negative', 'positive'] : part(run.spec.task).label_words;
  const body = labels.map((gold, i) => [`${i}`, el('td', {}, words[gold]), ...found.margins.map((row, mark) => {
    const right = (row[i] > 0) === (gold === 1);
    const chance = row[i] === null ? '–' : (1 / (1 + Math.exp(-row[i]))).toFixed(3);
    return el('td', { class: right ? 'right' : 'wrong' }, chance, invalid[mark][i] ? '*' : '', ' ',
      el('span', { role: 'img', 'aria-label': right ? 'right' : 'wrong' }, right ? '✓' : '✗'));
  })]);
  const head = ['test example', 'label', ...part(found.marks).map(atMark)];
  const star = invalid.flat().some(Boolean) ? ' * The host’s first choice of all words was neither label word.' : '';
  return section('Predictions', el('p', { class: 'quiet' },
    `The probability of “${words[1]}” for the first ${labels.length} of ${count(found.of)} test examples; `
      + `the texts are not kept.${star}`),
    table('Predictions', head, body));
}

function answers(run, found) { // a score from 0 to 1, and of choices a margin
  const invalid = part(found.invalid);
  const body = found.scores[0].map((_, i) => [`${i}`, ...found.scores.map((row, mark) => {
    const look = { 1: 'right', 0: 'wrong' }[row[i]];
    const margin = found.margins?.[mark][i] ?? null;
    const more = found.margins ? ` (${margin > 0 ? '+' : ''}${exact(margin).replace('-', '−')})` : '';
    return el('td', { class: look }, exact(row[i]), more, invalid[mark][i] ? '*' : '', ' ',
      look ? el('span', { role: 'img', 'aria-label': look }, look === 'right' ? '✓' : '✗') : null);
  })]);
  const star = invalid.flat().some(Boolean) ? ' * The answer did not end within its limit of tokens.' : '';
  const scoring = run.spec.task === undefined ? null : part(run.spec.task).scoring;
  const brackets = found.margins ? ', in brackets how much likelier the right choice is than the best wrong one, in nats' : '';
  return section('Predictions', el('p', { class: 'quiet' },
    `The score${scoring ? ` (${scoring.replaceAll('_', ' ')})` : ''} of the first ${body.length} of ${count(found.of)} test `
      + `examples, from 0 to 1${brackets}; the texts are not kept.${star}`),
    table('Predictions', ['test example', ...part(found.marks).map(atMark)], body));
}

function cost(run) {
  const [trainable, total, tokens, padded, bytes, seconds, stack] = run.cost;
  const number = (value) => (value === null ? '–' : count(value));
  const share = trainable && total ? ` (${exact((100 * trainable) / total)} % of ${count(total)})` : '';
  return section('What it cost', facts([['trainable parameters', number(trainable) + share],
    ['tokens trained on', number(tokens) + (padded ? `, ${count(padded)} with padding` : '')],
    ['seconds', `${exact(run.seconds)} in all, ${exact(seconds)} in training`],
    ['trained together with', stack ? `${stack - 1} other runs` : '–'],
    ['module on disk', bytes ? `${count(bytes)} bytes` : '–']]));
}

// ---- words

function commandOf(words) {
  const folder = words.includes('=PATH') ? ' PATH stands for a folder, which the study does not name.' : '';
  return [el('pre', { tabindex: 0 }, el('code', {}, words)),
    el('button', { type: 'button', 'data-copy': words }, 'Copy the command'),
    el('p', { class: 'quiet' }, 'It carries out this run, with the runs it starts from or is compared with. A run is named by '
      + 'all its settings: where the study’s command said more than its sweep, say it here too, else the command finds no '
      + 'such run and stops.' + folder)];
}

function flat(value, prefix = '') {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    const words = Array.isArray(value) ? value.join(', ') : value === null ? '–' : String(value);
    return [[prefix || 'value', words]];
  }
  const found = Object.entries(value).flatMap(([key, inner]) => flat(inner, prefix ? `${prefix}.${key}` : key));
  return found.length ? found : [[prefix || 'value', '–']];
}

function configuration(run) {
  const parts = Object.entries(run.spec).map(([key, at]) => [key, part(at)]);
  const isDeep = ([, value]) => value !== null && typeof value === 'object';
  const plain = [...parts.filter((item) => !isDeep(item)), ['origin', run.origin], ['seed', run.seed]];
  const deep = parts.filter(isDeep);
  const machine = { written: run.written, ...part(run.machine) };
  const blocks = [['run', Object.fromEntries(plain)], ...deep, ['where it was made', machine]];
  return el('details', {}, el('summary', {}, 'Configuration and machine'),
    ...blocks.flatMap(([key, value]) => [el('h4', {}, key), facts(flat(value))]));
}
