"use strict";
(() => {
  const form = document.getElementById("filters");
  const large = document.getElementById("large");
  document.addEventListener("click", (event) => {
    if (event.target.matches(".tiles img")) {
      large.firstElementChild.src = event.target.src;
      large.firstElementChild.alt = event.target.alt;
      large.showModal();
    } else if (event.target.closest("dialog")) {
      large.close();
    }
  });
  if (!form) return;
  const place = document.getElementById("items");
  const articles = [...place.children].map((node) => ({
    node,
    tags: JSON.parse(node.dataset.tags),
    split: node.dataset.split,
    score: node.dataset.score === "" ? null : Number(node.dataset.score),
    name: node.dataset.name,
  }));
  const value = (name) => (form.elements[name] ? form.elements[name].value : "");
  const orders = {
    name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
    hard: (a, b) => (a.score ?? 2) - (b.score ?? 2),
    easy: (a, b) => (b.score ?? -1) - (a.score ?? -1),
  };
  function update() {
    const most = form.elements.most ? Number(value("most")) / 100 : 1;
    if (form.elements.most) form.querySelector("output").value = value("most");
    const text = value("text").toLowerCase();
    let shown = 0;
    for (const item of [...articles].sort(orders[value("order")])) {
      const fits =
        (value("tag") === "" || item.tags.includes(value("tag"))) &&
        (value("split") === "" || item.split === value("split")) &&
        (most >= 1 || (item.score !== null && item.score <= most)) &&
        item.name.toLowerCase().includes(text);
      item.node.hidden = !fits;
      shown += fits ? 1 : 0;
      place.append(item.node);
    }
    document.getElementById("count").textContent = `${shown} of ${articles.length} shown`;
    document.getElementById("none").hidden = shown > 0;
  }
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
})();
