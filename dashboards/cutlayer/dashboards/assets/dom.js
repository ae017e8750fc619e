'use strict';
// Elements and colours. All text goes in as text: names of sites come from peers.

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Charts draw on a canvas, which knows no variables of CSS.
function cssColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Neighbours in a stack touch, so its colours are in an order of their own.
const LINE_COLOURS = [5, 1, 4, 8, 10, 2, 0, 6, 7, 3, 9];

function seriesColour(series, place, isStack) {
  return series.colour || `c${isStack ? place % 11 : LINE_COLOURS[place % 11]}`;
}

function thresholdColour(panel, value) {
  let colour = '';
  for (const threshold of panel.thresholds) if (value >= threshold.value) colour = threshold.colour;
  return colour;
}

function emptyText(panel, context) {
  if (context.isOver) return 'no data';
  if (context.numAgents === 0) return 'no data yet: waiting for agents';
  return panel.empty_text || 'no data yet';
}

// What a panel means, beside it: on hover, on keyboard focus, on a tap.
const tip = {
  element: null,
  show(button, panel) {
    this.hide();
    const names = el('small', {}, `Metrics: ${panel.metrics.join(', ')}`);
    this.element = el('div', { id: 'tip', 'aria-hidden': 'true' }, panel.description, names);
    document.body.append(this.element);
    const anchor = button.getBoundingClientRect();
    const box = this.element.getBoundingClientRect();
    const left = Math.max(8, Math.min(anchor.right - box.width, innerWidth - box.width - 8));
    const below = anchor.bottom + 6;
    const top = below + box.height < innerHeight ? below : Math.max(8, anchor.top - box.height - 6);
    this.element.style.left = `${left}px`;
    this.element.style.top = `${top}px`;
  },
  hide() {
    this.element?.remove();
    this.element = null;
  },
};

function infoButton(panel) {
  const button = el('button', { class: 'info', type: 'button', 'aria-label': `About ${panel.title}: ${panel.description}` }, 'i');
  for (const event of ['mouseenter', 'focus', 'click']) button.addEventListener(event, () => tip.show(button, panel));
  for (const event of ['mouseleave', 'blur']) button.addEventListener(event, () => tip.hide());
  button.addEventListener('keydown', (event) => { if (event.key === 'Escape') tip.hide(); });
  return button;
}
