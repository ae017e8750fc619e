'use strict';
// Numbers as Grafana writes them: decimal prefixes, three digits, a space before the unit.

const BYTE_UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
const SECOND_UNITS = [[1e-6, 1e9, 'ns'], [1e-3, 1e6, 'µs'], [1, 1e3, 'ms'], [60, 1, 's'], [3600, 1 / 60, 'min'], [Infinity, 1 / 3600, 'h']];

function fewDigits(value, decimals) {
  const size = Math.abs(value);
  const digits = decimals ?? (size === 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2);
  const text = value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return decimals === null && text.includes('.') ? text.replace(/\.?0+$/, '') : text;
}

function bytesText(value, decimals, end) {
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < BYTE_UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${fewDigits(value, unit ? decimals : 0)} ${BYTE_UNITS[unit]}${end}`;
}

function secondsText(value, decimals) {
  if (value === 0) return '0 s';
  const [, factor, unit] = SECOND_UNITS.find(([limit]) => Math.abs(value) < limit);
  return `${fewDigits(value * factor, decimals)} ${unit}`;
}

// decimals: digits after the point, or null for as many as tell something.
function formatValue(value, unit, decimals = null) {
  if (value === null || value === undefined) return '-';
  switch (unit) {
    case 'decbytes': return bytesText(value, decimals, '');
    case 'Bps': return bytesText(value, decimals, '/s');
    case 's': return secondsText(value, decimals);
    case 'percentunit': return `${fewDigits(value * 100, decimals)} %`;
    case 'cps': return `${fewDigits(value, decimals)} /s`;
    case 'suffix:x': return `${fewDigits(value, decimals)}x`;
    default: return fewDigits(value, decimals);
  }
}

function clockText(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString('en-GB');
}

function agoText(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
