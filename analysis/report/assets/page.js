// The rows of a study's cells, and the dialog of one run; the address holds the run that is open.

function label(i) {
  const seed = get('seed', i) === null ? 'no seed' : `seed ${get('seed', i)}`;
  const set = data.cells.data.words.length > 1 ? ` (${get('data', i)})` : '';
  const pair = `${get('origin', i)} → ${get('receiving', i)}${set}`;
  return [get('method', i), pair, get('relation', i), get('init', i), seed, `${get('budget', i)} updates`].join(', ');
}

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

function open(run) {
  clearTimeout(waiting);
  view.run = run;
  history.pushState(null, '', `#${address(run)}`); // the browser's Back returns to the run before
  showRun();
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

$('grid').addEventListener('click', (event) => {
  const row = event.target.closest('tbody tr')?.querySelector('[data-run]');
  if (row && !String(getSelection())) { row.focus(); open(row.dataset.run); }
});
$('grid').addEventListener('restored', showRun);
$('run').addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (event.target === $('run') || button?.dataset.close) $('run').close();
  if (button?.dataset.run) open(button.dataset.run);
  if (button?.dataset.copy) copy(button.dataset.copy, (said) => { button.textContent = said; });
});
$('run').addEventListener('close', () => { if (view.run) { view.run = ''; keep(); } });
begin();
