"""Style and behaviour of the inspection page; nothing in here is filled in."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #ffffff; --ink: #23211d; --soft: #6d6a63; --faint: #a8a49b;
  --line: #e5e2da; --wash: #f1efe9; --other: #dcd9d1; --void: #f1efe9;
  --mask-paper: #2b2925; --mask-ink: #fdfcf9; --random: #b3261e; --kept: #1a6f3c;
  --pick: #e8590c; --pick-wash: #fff1e6; --seen: #1c6dd0; --seen-wash: #eaf2fd;
  --light: 62%; --chroma: 0.12;
  --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, "Noto Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17181b; --card: #1f2125; --ink: #e6e4df; --soft: #a09d96;
    --faint: #6f6d68; --line: #33353b; --wash: #26282d; --other: #3a3d44;
    --void: #25272b;
    --mask-paper: #ece9e2; --mask-ink: #1b1c1f; --random: #ff8a80; --kept: #7fd39b;
    --pick: #ff9a52; --pick-wash: #3a2a1d; --seen: #7db4ff; --seen-wash: #1e2c40;
    --light: 70%; --chroma: 0.11;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 var(--sans); text-rendering: optimizeLegibility;
}
.page { max-width: 1480px; margin: 0 auto; padding: 2.5rem 2rem 4rem; }
h1 { font: 600 2rem/1.15 var(--serif); letter-spacing: -0.01em; margin: 0; }
h2 { font: 600 1.2rem/1.3 var(--serif); margin: 0; overflow-wrap: anywhere; }
h3 { font: 600 0.82rem/1.4 var(--sans); margin: 0; }
p { margin: 0; }
.lead { color: var(--soft); margin-top: 0.4rem; max-width: 46rem; }
.run { font: 0.8rem/1.5 var(--mono); color: var(--soft); margin-top: 0.6rem; }

.tiles {
  display: grid; gap: 0.8rem; margin: 1.6rem 0 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr));
}
.tile {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.8rem 1rem;
}
.tile b {
  display: block; font: 600 1.55rem/1.2 var(--serif);
  font-variant-numeric: tabular-nums;
}
.tile span { display: block; color: var(--soft); font-size: 0.8rem; line-height: 1.4; }
.legend {
  display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; color: var(--soft);
  font-size: 0.84rem; padding: 0.7rem 0; border-block: 1px solid var(--line);
}
.legend .said { font-size: 0.95rem; }
.legend kbd {
  font: 0.75rem var(--mono); border: 1px solid var(--line); border-radius: 4px;
  padding: 0 0.3em; background: var(--card);
}
.columns {
  display: grid; grid-template-columns: minmax(0, 1fr) minmax(24rem, 34rem);
  gap: 2rem; margin-top: 1.6rem; align-items: start;
}
.columns.alone { grid-template-columns: minmax(0, 1fr); }

.tree { margin-bottom: 3rem; --color: oklch(var(--light) var(--chroma) var(--hue)); }
.tree > header { display: flex; gap: 0.7rem; align-items: baseline; flex-wrap: wrap; }
.tree > header .letter, .map .letter {
  font: 600 0.85rem/1 var(--sans); color: var(--card); background: var(--color);
  border-radius: 5px; padding: 0.25em 0.5em; align-self: center;
}
.tree > header p { color: var(--soft); font-size: 0.85rem; }
.drawing {
  display: block; width: 100%; height: auto; margin: 0.8rem 0 1rem; overflow: visible;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.drawing path { fill: none; stroke: var(--faint); stroke-width: 1; opacity: 0.7; }
.drawing circle { fill: var(--color); cursor: pointer; }
.drawing circle.quiet { fill: var(--card); stroke: var(--color); stroke-width: 1.5; }
.drawing circle.seen { fill: var(--seen); stroke: none; }
.drawing circle.picked { fill: var(--pick); stroke: none; }
.drawing path.lit { stroke: var(--seen); stroke-width: 2; opacity: 1; }

.comments { list-style: none; margin: 0; padding: 0; }
.comments > li {
  --indent: calc(var(--depth) * 1.05rem); padding-left: var(--indent);
  background: repeating-linear-gradient(
    to right, var(--line) 0 1px, transparent 1px 1.05rem
  ) 0.45rem 0 / calc(var(--indent) - 0.35rem) 100% no-repeat;
}
.comment {
  border: 1px solid transparent; border-radius: 9px; padding: 0.45rem 0.7rem 0.5rem;
  border-left: 3px solid transparent; position: relative;
}
.comment > header {
  display: flex; flex-wrap: wrap; gap: 0.1rem 0.6rem; align-items: center;
  font-size: 0.8rem; color: var(--soft);
}
.pick {
  font: 600 0.78rem/1 var(--sans); color: var(--card); background: var(--color);
  border: 0; border-radius: 5px; padding: 0.3em 0.5em; cursor: pointer;
  font-variant-numeric: tabular-nums;
}
.pick:focus-visible { outline: 2px solid var(--pick); outline-offset: 2px; }
.pick[aria-pressed="true"] { background: var(--pick); }
.who { color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.note { font-style: italic; }
.said {
  font: 1.02rem/1.62 var(--serif); overflow-wrap: anywhere; margin-top: 0.15rem;
}
.said i { font-style: normal; border-bottom: 1px solid var(--line); }
.said i.marker { color: var(--faint); font: 0.8em var(--mono); border: 0; }
.said i.masked {
  background: var(--mask-paper); color: var(--mask-ink); border: 0; border-radius: 3px;
  padding: 0.02em 0.28em; margin: 0 0.06em; box-decoration-break: clone;
  -webkit-box-decoration-break: clone;
}
.said i.random {
  border: 1px dashed var(--random); border-radius: 3px; padding: 0.02em 0.28em;
  color: var(--random); margin: 0 0.06em;
}
.said i.random s { color: var(--soft); margin-left: 0.4em; font-size: 0.85em; }
.said i.kept { border-bottom: 3px double var(--kept); color: var(--kept); }
.sees { font-size: 0.8rem; color: var(--soft); margin-top: 0.15rem; }
.sees b { font-weight: 600; color: var(--ink); }
.counts {
  text-decoration: none; color: var(--ink); font-variant-numeric: tabular-nums;
  border-radius: 3px; padding: 0.05em 0.3em; background: linear-gradient(
    to right, color-mix(in srgb, var(--seen) 38%, transparent) var(--share),
    color-mix(in srgb, var(--seen) 8%, transparent) 0
  );
}
.counts.against {
  background: linear-gradient(
    to right, color-mix(in srgb, var(--random) 38%, transparent) var(--share),
    color-mix(in srgb, var(--random) 8%, transparent) 0
  );
}
.sees span { color: var(--faint); }
.part { font-size: 0.75rem; color: var(--soft); margin-top: 0.5rem; }
.comment.picked { background: var(--pick-wash); border-left-color: var(--pick); }
.comment.seen { background: var(--seen-wash); border-left-color: var(--seen); }
.comment[data-hops]::after {
  content: attr(data-hops); position: absolute; top: 0.45rem; right: 0.7rem;
  font: 600 0.74rem/1 var(--sans); color: var(--card); background: var(--seen);
  border-radius: 1em; padding: 0.28em 0.65em;
}
details { font-size: 0.84rem; margin-top: 0.25rem; color: var(--soft); }
summary { cursor: pointer; width: fit-content; }
summary:focus-visible { outline: 2px solid var(--pick); outline-offset: 2px; }
.changes {
  white-space: pre-wrap; overflow-wrap: anywhere; color: var(--ink);
  background: var(--wash); border-radius: 7px; padding: 0.6rem 0.8rem; margin: 0.4rem 0;
  max-height: 22rem; overflow: auto; font: 0.9rem/1.55 var(--serif);
}
.changes del {
  color: var(--random); text-decoration-thickness: 1px;
  background: color-mix(in srgb, var(--random) 10%, transparent);
}
.changes ins {
  color: var(--kept); text-decoration: none; border-radius: 3px; padding: 0 0.15em;
  background: color-mix(in srgb, var(--kept) 16%, transparent);
}
.labelled {
  white-space: pre-wrap; overflow-wrap: anywhere; color: var(--ink); margin: 0.4rem 0;
  max-height: 22rem; overflow: auto; font: 0.95rem/1.75 var(--serif);
}
.labelled mark {
  color: inherit; border-radius: 3px; padding: 0.08em 0.15em;
  background: oklch(var(--light) var(--chroma) var(--hue) / 0.16);
  border-bottom: 2px solid oklch(var(--light) var(--chroma) var(--hue));
}
.labelled b {
  font: 600 0.72em/1 var(--sans); letter-spacing: 0.02em; color: var(--soft);
}
.more { color: var(--soft); font-style: italic; padding: 0.6rem 0.7rem; }

.rows {
  position: sticky; top: 1rem; max-height: calc(100vh - 2rem); overflow: auto;
  scrollbar-width: thin; padding-right: 0.4rem;
}
.rows > p { color: var(--soft); font-size: 0.84rem; margin: 0.2rem 0 0.8rem; }
.map { margin-bottom: 1.4rem; }
.map h3 {
  display: flex; justify-content: space-between; gap: 1rem; margin: 0.8rem 0 0.3rem;
}
.map h3 span { font-weight: 400; color: var(--soft); text-align: right; }
.strip {
  display: flex; height: var(--height); margin-bottom: 1px; background: var(--void);
}
.strip i {
  flex: 0 0 calc(var(--n) * 100% / var(--length)); background: var(--other);
  border-right: 1px solid var(--paper); min-width: 0;
}
.strip i[data-c] {
  background: oklch(var(--light) var(--chroma) var(--hue)); cursor: pointer;
}
.strip i.dim, .swatch.paler {
  background: oklch(var(--light) calc(var(--chroma) * 0.45) var(--hue));
}
.picking .strip i { opacity: 0.3; }
.picking .strip i.picked { background: var(--pick); opacity: 1; }
.picking .strip i.seen { background: var(--seen); opacity: 1; }
.others { background: var(--other); }
.swatch {
  display: inline-block; width: 1.2em; height: 0.75em; border-radius: 2px;
  margin-right: 0.35em; vertical-align: baseline;
}
.swatch.void { background: var(--void); border: 1px solid var(--line); }

.figures {
  display: grid; gap: 1.6rem 2.5rem; align-items: start; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); color: var(--soft);
  border-top: 1px solid var(--line); padding-top: 1.4rem;
}
table { border-collapse: collapse; font-size: 0.84rem; width: 100%; }
caption {
  text-align: left; font: 600 0.95rem var(--serif); color: var(--ink);
  padding-bottom: 0.4rem;
}
td, th {
  padding: 0.16rem 0; border-bottom: 1px solid var(--line); font-weight: 400;
  text-align: left; vertical-align: top; overflow-wrap: anywhere;
}
td:last-child {
  text-align: right; font-variant-numeric: tabular-nums; color: var(--ink);
  padding-left: 1rem;
}
.hidden {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap;
}
@media (max-width: 1000px) {
  .page { padding: 1.4rem 1rem 3rem; }
  .columns { grid-template-columns: minmax(0, 1fr); }
  .rows { position: static; max-height: none; order: -1; }
  .map.later { display: none; }
}
@media print { .rows { position: static; max-height: none; } }
"""

JAVASCRIPT = """
(() => {
  const all = new Map(), slots = new Map();
  const add = (map, key, element) =>
    map.has(key) ? map.get(key).push(element) : map.set(key, [element]);
  for (const element of document.querySelectorAll("[data-c]")) {
    add(all, element.dataset.c, element);
    if (element.dataset.slot) add(slots, element.dataset.slot, element);
  }
  const status = document.getElementById("status");
  const rows = document.querySelector(".rows");
  const picks = [...document.querySelectorAll(".pick")];
  const nameOf = (pick) => pick.closest(".comment").dataset.c;
  const commentOf = (name) => document.querySelector(`.comment[data-c="${name}"]`);
  const words = (text) => (text || "").split(" ").filter(Boolean);
  let lit = [], pinned = null, current = null;

  const light = (element, style) => {
    element.classList.add(style);
    lit.push([element, style]);
  };

  // Brings a comment's decoder block into the view of the packed rows.
  const reveal = (name) => {
    if (!rows || rows.scrollHeight <= rows.clientHeight) return;
    const isTarget = (element) => element.dataset.side === "decoder";
    const block = (all.get(name) || []).find(isTarget);
    if (!block) return;
    const top = rows.getBoundingClientRect().top;
    const offset = block.getBoundingClientRect().top - top;
    if (offset < 40 || offset > rows.clientHeight - 40)
      rows.scrollBy({ top: offset - rows.clientHeight / 2 });
  };

  const show = (name) => {
    for (const [element, style] of lit) {
      element.classList.remove(style);
      delete element.dataset.hops;
    }
    lit = [];
    current = name;
    document.body.classList.toggle("picking", name !== null);
    status.textContent = "";
    const comment = name === null ? null : commentOf(name);
    if (!comment) return;
    for (const element of all.get(name)) {
      if (element.matches("path")) light(element, "lit");
      // Among the encoder rows only what the comment sees lights up.
      else if (element.dataset.side !== "encoder") light(element, "picked");
    }
    for (const each of words(comment.dataset.sees)) {
      const [seen, hops, nats] = each.split(":");
      if (seen === name) continue;
      for (const element of all.get(seen) || []) {
        if (element.matches("path")) light(element, "lit");
        else if (!element.dataset.side) light(element, "seen");
        if (element.matches(".comment"))
          element.dataset.hops =
            (hops === "1" ? "1 hop up" : hops + " hops up") + (nats && " · " + nats);
      }
    }
    for (const slot of words(comment.dataset.slots))
      for (const element of slots.get(slot) || []) light(element, "seen");
    status.textContent = comment.dataset.summary;
  };

  const pin = (name) => {
    pinned = name;
    for (const pick of picks)
      pick.setAttribute("aria-pressed", String(nameOf(pick) === pinned));
    show(name);
  };

  const owner = (event) => {
    if (event.target.closest("summary, .changes")) return null;
    return event.target.closest("[data-c]");
  };
  document.addEventListener("mouseover", (event) => {
    if (pinned !== null) return;
    const element = owner(event);
    const name = element ? element.dataset.c : null;
    if (name === current) return;
    show(name);
    if (element && !element.dataset.side) reveal(name);
  });
  document.addEventListener("click", (event) => {
    // Selecting text, or opening what was cleaned, is not picking.
    if (String(getSelection()) || event.target.closest("summary, .changes")) return;
    const element = owner(event);
    const name = element ? element.dataset.c : null;
    if (name === null || name === pinned) return pin(null);
    pin(name);
    if (element.dataset.side || element.matches(".drawing *")) {
      const comment = commentOf(name);
      comment.scrollIntoView({ block: "center" });
      comment.querySelector(".pick").focus({ preventScroll: true });
    }
    reveal(name);
  });
  document.addEventListener("focusin", (event) => {
    if (!event.target.matches(".pick")) return;
    for (const pick of picks) pick.tabIndex = pick === event.target ? 0 : -1;
    if (pinned !== null) return;
    show(nameOf(event.target));
    reveal(nameOf(event.target));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return pin(null);
    if (!event.target.matches(".pick")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const comment = event.target.closest(".comment");
    const place = picks.indexOf(event.target);
    const within = (found) => found && found.querySelector(".pick");
    const targets = {
      ArrowDown: () => picks[place + 1],
      ArrowUp: () => picks[place - 1],
      ArrowLeft: () => within(commentOf(comment.dataset.parent)),
      ArrowRight: () =>
        within(document.querySelector(`[data-parent="${comment.dataset.c}"]`)),
      Home: () => picks[0],
      End: () => picks[picks.length - 1],
    };
    if (!(event.key in targets)) return;
    event.preventDefault();
    const next = targets[event.key]();
    if (!next) return;
    if (pinned !== null) pin(null);
    next.focus({ preventScroll: true });
    next.closest(".comment").scrollIntoView({ block: "nearest" });
  });
  picks.forEach((pick, place) => { pick.tabIndex = place ? -1 : 0; });
})();
"""
