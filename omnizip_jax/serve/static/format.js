// Formatting of numbers and times.

export const percent = (share) => `${Math.round(100 * share)}\u202f%`;

export const count = (number) => number.toLocaleString("en");

export const milliseconds = (seconds) =>
  seconds < 1 ? `${Math.round(1000 * seconds)}\u202fms` : `${seconds.toFixed(1)}\u202fs`;

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

export const sum = (values) => values.reduce((a, b) => a + b, 0);
