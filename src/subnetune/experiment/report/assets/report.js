// The page works without this: it adds sorting, filtering and a switch for dark mode. Nothing is stored or fetched.
(() => {
  "use strict";
  const live = document.getElementById("live");
  const collator = new Intl.Collator("en", { numeric: true });

  // Dark mode: as the system has it, until the button says otherwise.
  const theme = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : system.matches;
  };
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  system.addEventListener("change", showTheme);
  theme.hidden = false;
  showTheme();

  // Sorting: a button in every header. Rows without a value come last, whichever way the others go.
  const valueOf = (row, column, numeric) => {
    const value = row.cells[column].dataset.v;
    return value === undefined ? null : numeric ? Number(value) : value;
  };
  const sort = (table, heads, column) => {
    const head = heads[column];
    const numeric = head.matches(".number, .drawn");
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const direction = head.getAttribute("aria-sort") === first ? second : first;
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = [...table.tBodies[0].rows].map((row) => [valueOf(row, column, numeric), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (numeric ? a - b : collator.compare(a, b));
    });
    table.classList.add("sorted");
    table.tBodies[0].append(...keyed.map(([, row]) => row));
    for (const other of heads) other.setAttribute("aria-sort", other === head ? direction : "none");
    live.textContent = `${table.caption.textContent}: sorted by ${head.textContent}, ${direction}`;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, heads, column));
      head.append(button);
      head.setAttribute("aria-sort", "none");
    });
  }

  // Filtering: one bar for all tables of its section.
  const bar = document.getElementById("filter");
  const text = document.getElementById("filter-text");
  const selects = [...bar.querySelectorAll("select")];
  const tables = [...document.querySelectorAll("table.filtered")].map((table) => ({
    rows: [...table.tBodies[0].rows].map((row) => ({ row, words: row.textContent.toLowerCase() })),
    count: table.closest(".block").querySelector(".count"),
  }));
  const rowsOf = (shown, all) => `${shown} of ${all} ${all === 1 ? "row" : "rows"}`;
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.filter((select) => select.value).map((select) => [select.dataset.filter, select.value]);
    let shownInAll = 0;
    let all = 0;
    for (const { rows, count } of tables) {
      let shown = 0;
      for (const { row, words: content } of rows) {
        const fits = wanted.every(([name, value]) => row.dataset[name] === value) && words.every((word) => content.includes(word));
        row.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      count.textContent = rowsOf(shown, rows.length);
      shownInAll += shown;
      all += rows.length;
    }
    document.getElementById("filter-status").textContent = `${rowsOf(shownInAll, all)} in ${tables.length} tables`;
  };
  text.addEventListener("input", filter);
  for (const select of selects) select.addEventListener("change", filter);
  document.getElementById("filter-clear").addEventListener("click", () => {
    text.value = "";
    for (const select of selects) select.value = "";
    filter();
    text.focus();
  });
  bar.hidden = false;
  filter();

  // A drawing that is wider than its place is scrolled by keyboard too.
  const reach = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const wide = target.scrollWidth > target.clientWidth;
      const title = target.closest("figure").querySelector("h3").textContent;
      for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", `Plot: ${title}`]]) {
        if (wide) target.setAttribute(name, value);
        else target.removeAttribute(name);
      }
    }
  });
  for (const drawing of document.querySelectorAll(".drawing")) reach.observe(drawing);

  // Paper has no way to open what is closed.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });

  // Where the reader is, in the contents.
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "0px 0px -75% 0px" });
  for (const section of document.querySelectorAll("main > section")) seen.observe(section);
})();
