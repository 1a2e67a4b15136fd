"use strict";
// What the gallery and the review page share. Every caption and name goes in as a text node or an attribute's value.

function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

function listed(title, lines) {
  return make("details", "", make("summary", "", title), make("ul", "", ...lines.map((line) => make("li", "", line))));
}

// What is searched and compared: composed letters, in lower case.
const folded = (text) => text.normalize("NFC").toLowerCase();
const collator = new Intl.Collator(undefined, { numeric: true });

// A caption as a line in which each word that has a heat map can be pointed at.
function wordLine(caption, heat) {
  const line = make("span", "caption");
  line.dir = "auto";
  if (!heat) {
    line.append(caption);
    return line;
  }
  const letters = [...caption]; // code points, as the words' places are counted
  let at = 0;
  heat.words.forEach(([start, stop], index) => {
    const word = make("span", "word", letters.slice(start, stop).join(""));
    word.tabIndex = 0;
    word.dataset.index = index;
    line.append(letters.slice(at, start).join(""), word);
    at = stop;
  });
  line.append(letters.slice(at).join(""));
  return line;
}

// A canvas over an image that shows one of the heat maps in a strip, which lie one below the other.
function heatOver(image, strip, index, heat) {
  const [rows, columns] = heat.grid;
  const [left, top, width, height] = heat.box ?? [0, 0, 1, 1];
  const scale = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
  const canvas = make("canvas");
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  canvas.style.left = `${(image.clientWidth - canvas.width) / 2}px`;
  canvas.style.top = `${(image.clientHeight - canvas.height) / 2}px`;
  const map = make("canvas"); // drawn alone, so that neighbouring maps don't blend in at its edges
  map.width = columns;
  map.height = rows;
  map.getContext("2d").drawImage(strip, 0, index * -rows);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(map, left * canvas.width, top * canvas.height, width * canvas.width, height * canvas.height);
  return canvas;
}

