// Makes the columns of every table of figures sortable. Without it the tables keep their order.
for (const table of document.querySelectorAll("table.figures")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const original = [...body.rows];
  const key = (row, column) =>
    column === 0 ? row.cells[0].textContent.trim() : row.cells[column].dataset.value;
  const compare = (a, b, column) =>
    column === 0
      ? key(a, 0).localeCompare(key(b, 0))
      : parseFloat(key(a, column)) - parseFloat(key(b, column));
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = heading.textContent.trim();
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      // ascending, then descending, then as it was
      const before = heading.getAttribute("aria-sort");
      const order = { null: "ascending", ascending: "descending" }[before];
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      if (order) heading.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const known = original.filter((row) => key(row, column) !== "");
      const unknown = original.filter((row) => key(row, column) === "");
      if (order) known.sort((a, b) => sign * compare(a, b, column));
      body.append(...(order ? [...known, ...unknown] : original));
    });
  });
}
