'use strict';
// Asks the worker once a second, draws what it says, and says so when it is silent.

const ASK_EVERY_MS = 1000;
const ASK_HIDDEN_EVERY_MS = 5000;
const ANSWER_WITHIN_MS = 5000;
const SILENT_AFTER_FAILURES = 2;
const store = new StatsStore();
const byId = (id) => document.getElementById(id);
let panels = [];
let numFailures = 0;
let heardAt = Date.now();

function layOut(board) {
  for (const panel of panels) panel.drop?.();
  panels = [];
  byId('board').replaceChildren(...board.rows.map((row) => {
    const grid = el('div', { class: 'panels' });
    for (const panel of row.panels) {
      const Drawer = { number: NumberPanel, bars: BarsPanel }[panel.shape] ?? ChartPanel;
      const drawer = new Drawer(panel);
      drawer.element.style.gridColumn = `span ${panel.width}`;
      drawer.element.dataset.panel = panel.index;
      grid.append(drawer.element);
      panels.push(drawer);
    }
    return el('section', { class: 'row' }, ...(row.title ? [el('h2', {}, row.title)] : []), grid);
  }));
}

function drawHeader() {
  const { run, now } = store.document;
  const phase = byId('phase');
  const phaseText = run.is_over ? 'ended' : run.phase;
  phase.textContent = phaseText;
  phase.className = `phase ${phaseText}`;
  phase.hidden = false;
  const facts = byId('facts');
  facts.textContent = [`run ${run.run}`, `worker ${run.worker}`, run.model.split(' ')[0], `cutlayer ${run.version}`].join(' · ');
  facts.title = run.model;
  const span = store.times.length > 1 ? `last ${agoText(store.times[store.times.length - 1] - store.times[0])} · ` : '';
  byId('clock').textContent = `${span}${clockText(now)}`;
  document.title = `${phaseText} · ${run.worker} · Cutlayer`;
}

function draw() {
  const context = { isOver: store.document.run.is_over, numAgents: store.document.num_agents };
  drawHeader();
  drawHeadlines(byId('headlines'), store.document.headlines);
  for (const panel of panels) panel.draw(store, context);
}

function drawBanner() {
  const banner = byId('banner');
  const run = store.document?.run;
  const isOver = Boolean(run?.is_over);
  const isSilent = numFailures >= SILENT_AFTER_FAILURES;
  banner.hidden = !isOver && !isSilent;
  banner.classList.toggle('over', isOver);
  document.body.classList.toggle('stale', isSilent && !isOver);
  let text = '';
  if (isOver) {
    text = `The run has ended here${run.reason ? ` (${run.reason})` : ''}. This page keeps its last minutes; run.json in the worker's output folder holds the whole.`;
  } else if (isSilent) {
    const since = agoText((Date.now() - heardAt) / 1000);
    text = run ? `The worker has not answered for ${since}: it has stopped, or the connection to it is lost. Below is what it said last; still trying.` : `No worker answers at ${location.host}; still trying.`;
  }
  // A screen reader would read an unchanged text again.
  if (banner.textContent !== text) banner.textContent = text;
}

// Returns what the worker answers, or null where it does not.
async function fetchStats() {
  try {
    const response = await fetch(store.address(), { cache: 'no-store', signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

async function ask() {
  const answer = await fetchStats();
  if (answer === null) {
    numFailures += 1;
  } else {
    numFailures = 0;
    heardAt = Date.now();
    if (store.take(answer)) layOut(store.board);
    if (!document.hidden) draw();
  }
  drawBanner();
}

async function askForEver() {
  for (;;) {
    await ask();
    await new Promise((resolve) => { setTimeout(resolve, document.hidden ? ASK_HIDDEN_EVERY_MS : ASK_EVERY_MS); });
  }
}

document.addEventListener('visibilitychange', () => { if (!document.hidden && store.document) draw(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  for (const panel of panels) panel.recolour();
  if (store.document) draw();
});
byId('footer').append(
  'The same panels: Grafana with the files in dashboards/, and ', el('code', {}, 'cutlayer top'), ' in a terminal. The numbers: ',
  el('a', { href: '/metrics' }, '/metrics'), ' for Prometheus, ', el('a', { href: '/api/stats.json' }, '/api/stats.json'), ' for scripts.',
);
askForEver();
