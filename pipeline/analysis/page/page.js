// Filters and sorts tables, and switches the denominator. Without it the page shows everything.
"use strict";

function sortBy(table, column, descending) {
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const number = (text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text));
  const order = (a, b) => {
    const [textA, textB] = [value(a), value(b)];
    const [numberA, numberB] = [number(textA), number(textB)];
    if (textA === "" || textB === "") return (textA === "") - (textB === ""); // empty cells last, in both directions
    const difference = numberA !== null && numberB !== null ? numberA - numberB : textA.localeCompare(textB);
    return descending ? -difference : difference;
  };
  const body = table.tBodies[table.tBodies.length - 1];
  [...body.rows].sort(order).forEach((row) => body.append(row));
  [...table.tHead.rows[0].cells].forEach((cell, index) => {
    if (index === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
}

for (const button of document.querySelectorAll("th button")) {
  const cell = button.closest("th");
  button.addEventListener("click", () => {
    sortBy(cell.closest("table"), cell.cellIndex, cell.getAttribute("aria-sort") === "ascending");
  });
}

for (const input of document.querySelectorAll("input[data-filters]")) {
  const tables = document.querySelectorAll(`table[data-filter="${input.dataset.filters}"]`);
  const counter = document.querySelector(`output[data-counts="${input.dataset.filters}"]`);
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const table of tables) {
      const rows = [...table.tBodies[table.tBodies.length - 1].rows];
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      counter.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
    }
  };
  input.addEventListener("input", apply);
  apply();
}

for (const choice of document.querySelectorAll("input[name^='denominator-']")) {
  const group = choice.name;
  const apply = () => {
    if (!choice.checked) return;
    for (const table of document.querySelectorAll(`[data-group="${group}"]`)) {
      table.hidden = table.dataset.denominator !== choice.value;
    }
  };
  choice.addEventListener("change", apply);
  apply();
}
