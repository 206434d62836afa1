// Measures a page in a browser, and replaces it by what was found, as JSON.
const number = text => text.match(/[\d.]+/g).map(Number);
const luminance = rgb => rgb.slice(0, 3).map(c => c / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const contrast = (a, b) => { const [x, y] = [a, b].map(luminance).sort((p, q) => q - p); return (x + .05) / (y + .05); };
const ground = node => { for (; node; node = node.parentElement) {
  const c = number(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
const out = {};
out.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
out.tiles = [...document.querySelectorAll(".map rect")].map(r => { const b = r.getBoundingClientRect(); return b.width * b.height; });
out.labels = [...document.querySelectorAll(".map g")].flatMap(g => [...g.querySelectorAll("text")].map(t => {
  const a = t.getBoundingClientRect(), b = g.querySelector("rect").getBoundingClientRect();
  return a.right <= b.right + 1 && a.bottom <= b.bottom + 1; }));
out.mapContrast = Math.min(...[...document.querySelectorAll(".map g")].flatMap(g => [...g.querySelectorAll("text")].map(t =>
  contrast(number(getComputedStyle(t).fill), number(getComputedStyle(g.querySelector("rect")).fill)))));
out.contrast = Math.min(...[...document.querySelectorAll("h1,h2,p,td,th,caption,span,strong,li")].filter(n => n.innerText)
  .map(n => contrast(number(getComputedStyle(n).color), ground(n))));
out.ground = number(getComputedStyle(document.body).backgroundColor);
out.resources = performance.getEntriesByType("resource").length;
document.body.innerHTML = ""; document.body.append("RESULT" + JSON.stringify(out) + "RESULT");
