// Slices through the maps, on scales of their own, with axes and a bar of length.

const TICKS = 5; // at most, along an axis

// A round number of Å near to this length.
function rounded(length) {
  const unit = 10 ** Math.floor(Math.log10(length));
  return unit * ([5, 2, 1].find((times) => times * unit <= length) || 1);
}

function slices(data, volumes) {
  const byId = (id) => document.getElementById(id), place = byId("place"), axis = byId("axis"), panels = [];
  for (const [name, volume] of Object.entries(volumes)) {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption"), key = document.createElement("p"), bar = document.createElement("span");
    caption.textContent = name;
    canvas.setAttribute("role", "img");
    key.className = "scale";
    bar.style.background = volume.signed
      ? "linear-gradient(to right, rgb(33,102,172), white, rgb(178,24,43))" : "linear-gradient(to right, white, black)";
    key.append(`${volume.signed ? "−" + volume.black.toPrecision(2) : 0} `, bar, ` ${volume.black.toPrecision(2)}`);
    figure.append(caption, canvas, key);
    byId("panels").append(figure);
    panels.push({ name, volume, canvas });
  }

  function draw() {
    const [nx, ny, nz] = data.grid.shape, step = [ny * nz, nz, 1], cut = Number(axis.value);
    const [u, v] = [0, 1, 2].filter((k) => k !== cut), at = Number(place.value);
    const where = data.grid.origin[cut] + at * data.grid.voxel[cut];
    const [width, height] = [u, v].map((k) => data.grid.shape[k] * data.grid.voxel[k]);
    const long = rounded(width / 3);
    byId("place_text").textContent = `${"xyz"[cut]} = ${where.toFixed(1)} Å`;
    byId("slice_axes").textContent = `To the right: ${"xyz"[u]}, upwards: ${"xyz"[v]}; the bar is ${long} Å long.`;
    for (const { name, volume, canvas } of panels) {
      canvas.width = data.grid.shape[u];
      canvas.height = data.grid.shape[v];
      canvas.style.aspectRatio = `${width} / ${height}`;
      canvas.setAttribute("aria-label", `slice through ${name} at ${"xyz"[cut]} = ${where.toFixed(1)} Å`);
      const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
      for (let j = 0, p = 0; j < canvas.height; j++) for (let i = 0; i < canvas.width; i++, p += 4) {
        const code = volume.codes[at * step[cut] + i * step[u] + (canvas.height - 1 - j) * step[v]];
        const share = Math.max(Math.min(volume.density[code] / volume.black, 1), volume.signed ? -1 : 0);
        const end = !volume.signed ? [0, 0, 0] : share < 0 ? [33, 102, 172] : [178, 24, 43];
        for (let k = 0; k < 3; k++) image.data[p + k] = 255 + Math.abs(share) * (end[k] - 255);
        image.data[p + 3] = 255;
      }
      context.putImageData(image, 0, 0);
      context.fillStyle = "#d9480f";
      const thick = Math.max(1, Math.round(canvas.height / 80));
      context.fillRect(2 * thick, canvas.height - 3 * thick, Math.round(long / data.grid.voxel[u]), thick);
    }
  }

  function choose() {
    place.max = data.grid.shape[Number(axis.value)] - 1;
    place.value = data.middle[Number(axis.value)];
    draw();
  }

  axis.addEventListener("change", choose);
  place.addEventListener("input", draw);
  byId("cuts").hidden = false;
  byId("still_slices").hidden = true;
  choose();
}
